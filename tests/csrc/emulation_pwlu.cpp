// Calls PWLU's launchers for the tests.
#include "emulation.h"

#include "pwlu_backward.cu"
#include "pwlu_forward.cu"
#include "pwlu_phase1.cu"

enum { kForward, kBackward, kBackwardX, kBackwardParameters, kPhase1 };

// See cuda_pwlu.py. numbers: batch, channels, inner, channels last, element, N, op. buffers: points, left_bound,
// right_bound, left_slope, right_slope, x, grad, and then the outputs of the op.
extern "C" int run_case(const int64_t* numbers, void** buffers) {
  using namespace pwlu;
  const Layout layout{numbers[0], numbers[1], numbers[2], numbers[3] != 0};
  const auto element = Element(numbers[4]);
  const PwluParameters parameters{buffers[0], buffers[1], buffers[2], buffers[3], buffers[4], int(numbers[5])};
  void *x = buffers[5], *grad = buffers[6], **out = buffers + 7;
  std::vector<double> workspace;
  const auto reserve = [&](int64_t size) {
    workspace.assign(size, NAN);
    return workspace.data();
  };
  const auto backward = [&](void* grad_x, void** by) {
    const PwluGradients gradients{by[0], by[1], by[2], by[3], by[4]};
    double* space = reserve(pwlu_backward_workspace(layout, element, parameters.num_intervals));
    return launch_pwlu_backward(layout, element, parameters, grad, x, grad_x, &gradients, space, nullptr);
  };
  switch (numbers[6]) {
    case kForward:
      return launch_pwlu(layout, element, parameters, x, out[0], nullptr);
    case kBackward:
      return backward(out[0], out + 1);
    case kBackwardX:
      return launch_pwlu_backward(layout, element, parameters, grad, x, out[0], nullptr, nullptr, nullptr);
    case kBackwardParameters:
      return backward(nullptr, out);
    default:
      return launch_pwlu_phase1(layout, element, x, out[0], out[1], out[2],
                                reserve(pwlu_phase1_workspace(layout, element)), nullptr);
  }
}
