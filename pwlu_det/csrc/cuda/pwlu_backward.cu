#include "pwlu_backward.cuh"

namespace pwlu {

int64_t pwlu_backward_workspace(const Layout& layout, Element element, int num_intervals) {
  return with_pwlu_items(layout, element, num_intervals, [&](auto, const auto& items) -> int64_t {
    return items.channels() * 2 * (num_intervals + 2) * (items.items_of_channel() + 1);
  });
}

int launch_pwlu_backward(const Layout& layout, Element element, const PwluParameters& parameters, const void* grad,
                         const void* x, void* grad_x, const PwluGradients* gradients, double* workspace,
                         void* stream) {
  const auto run = [&](auto sums) {
    return launch_pwlu_backward_of<decltype(sums)::value, TensorInput>(layout, element, parameters, grad, x, grad_x,
                                                                       gradients, workspace, stream);
  };
  return gradients ? run(std::true_type()) : run(std::false_type());
}

}  // namespace pwlu
