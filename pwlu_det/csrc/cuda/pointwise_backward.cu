#include "pointwise.cuh"

namespace pwlu {

int64_t pointwise_workspace(const Layout& layout, Element element, int size) {
  return with_items(layout, element, layout.channels_last, [&](auto, const auto& items) -> int64_t {
    return items.channels() * size * items.items_of_channel();
  });
}

int launch_pointwise_backward(Activation activation, const Layout& layout, Element element,
                              const PointwiseParameters& parameters, const void* grad, const void* x, void* grad_x,
                              const PointwiseGradients* gradients, double* workspace, void* stream) {
  const auto run = [&](auto sums) {
    return launch_pointwise_backward_of<decltype(sums)::value, TensorInput>(
        activation, layout, element, parameters, grad, x, grad_x, gradients, workspace, stream);
  };
  return gradients ? run(std::true_type()) : run(std::false_type());
}

}  // namespace pwlu
