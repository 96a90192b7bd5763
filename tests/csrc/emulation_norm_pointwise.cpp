// Pointwise activations after a norm; the activation and its number of coefficients are the last numbers.
#include "norm_pointwise_backward.cu"
#include "norm_pointwise_forward.cu"
#include "norm.cu"
#include "pwlu_phase1.cu"

#include "emulation_norm.h"

namespace pwlu {
int64_t pointwise_workspace(const Layout& layout, Element element, int size) {
  return with_items(layout, element, layout.channels_last, [&](auto, const auto& items) -> int64_t {
    return items.channels() * size * items.items_of_channel();
  });
}
}  // namespace pwlu

extern "C" int run_case(const int64_t* numbers, void** buffers) {
  using namespace pwlu;
  const auto activation = Activation(numbers[8]);
  const int size = int(numbers[9]);
  const auto rows = [&](auto coefficients, void* buffer) {
    const int64_t step = numbers[1] * (Element(numbers[4]) == Element::kDouble ? sizeof(double) : sizeof(float));
    for (int k = 0; k < size; ++k) coefficients.rows[k] = {static_cast<char*>(buffer) + k * step, 1};
    return coefficients;
  };
  const auto parameters = rows(PointwiseParameters{size, {}}, buffers[8]);
  return run_norm_case(
      numbers, buffers, 1,
      [&](const NormCall& c, void* y) {
        return launch_norm_pointwise(activation, c.layout, c.element, c.source, parameters, y, nullptr);
      },
      [&](const NormCall& c, const void* grad, void* dz, void** by, double* sums) {
        std::vector<double> workspace(pointwise_workspace(c.layout, c.element, size), NAN);
        return launch_norm_pointwise_backward(activation, c.layout, c.element, c.source, parameters, grad, dz,
                                              rows(PointwiseGradients{size, {}}, by[0]), workspace.data(), sums,
                                              nullptr);
      });
}
