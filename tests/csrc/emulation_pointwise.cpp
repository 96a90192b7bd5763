// Calls the pointwise activations' launchers for the tests.
#include "emulation.h"

#include "pointwise_backward.cu"
#include "pointwise_forward.cu"

enum { kForward, kBackward, kBackwardX, kBackwardParameters };

// See cuda_pointwise.py. numbers: batch, channels, inner, channels last, element, activation, number of coefficients
// per channel, stride of a coefficient, stride of a channel, op. buffers: parameters, x, grad, and then the outputs
// of the op.
extern "C" int run_case(const int64_t* numbers, void** buffers) {
  using namespace pwlu;
  const Layout layout{numbers[0], numbers[1], numbers[2], numbers[3] != 0};
  const auto element = Element(numbers[4]);
  const auto activation = Activation(numbers[5]);
  const int size = int(numbers[6]);
  const auto rows = [&](auto coefficients, void* buffer) {
    const int64_t step = numbers[7] * (element == Element::kDouble ? sizeof(double) : sizeof(float));
    for (int k = 0; k < size; ++k) coefficients.rows[k] = {static_cast<char*>(buffer) + k * step, numbers[8]};
    return coefficients;
  };
  const auto parameters = rows(PointwiseParameters{size, {}}, buffers[0]);
  const void *x = buffers[1], *grad = buffers[2];
  void** out = buffers + 3;
  const auto backward = [&](void* grad_x, void* by) {
    const auto gradients = rows(PointwiseGradients{size, {}}, by);
    std::vector<double> workspace(pointwise_workspace(layout, element, size), NAN);
    return launch_pointwise_backward(activation, layout, element, parameters, grad, x, grad_x, &gradients,
                                     workspace.data(), nullptr);
  };
  switch (numbers[9]) {
    case kForward:
      return launch_pointwise(activation, layout, element, parameters, x, out[0], nullptr);
    case kBackward:
      return backward(out[0], out[1]);
    case kBackwardX:
      return launch_pointwise_backward(activation, layout, element, parameters, grad, x, out[0], nullptr, nullptr,
                                       nullptr);
    default:
      return backward(nullptr, out[0]);
  }
}
