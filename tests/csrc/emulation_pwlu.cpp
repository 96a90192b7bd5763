// PWLU's launchers for the tests.
#include "emulation.h"

#include "pwlu_backward.cu"
#include "pwlu_forward.cu"
#include "pwlu_phase1.cu"

enum { kForward, kBackward, kPhase1 };

// As in cuda_pwlu.py. numbers: batch, channels, inner, channels last, element, N, op. buffers: points, left_bound,
// right_bound, left_slope, right_slope, x, grad, and then the outputs of the op.
extern "C" int run_case(const int64_t* numbers, void** buffers) {
  using namespace pwlu;
  const Layout layout{numbers[0], numbers[1], numbers[2], numbers[3] != 0};
  const auto element = Element(numbers[4]);
  const PwluParameters functions{buffers[0], buffers[1], buffers[2], buffers[3], buffers[4], int(numbers[5])};
  const int64_t op = numbers[6];
  void *x = buffers[5], *grad = buffers[6], **out = buffers + 7;
  if (op == kForward) return launch_pwlu(layout, element, functions, x, out[0], nullptr);
  const int64_t doubles = op == kBackward ? pwlu_backward_workspace(layout, element, functions.num_intervals)
                                          : pwlu_phase1_workspace(layout, element);
  std::vector<double> workspace(doubles, NAN);
  if (op == kBackward) {
    const PwluGradients gradients{out[1], out[2], out[3], out[4], out[5]};
    return launch_pwlu_backward(layout, element, functions, grad, x, out[0], gradients, workspace.data(), nullptr);
  }
  return launch_pwlu_phase1(layout, element, x, out[0], out[1], out[2], workspace.data(), nullptr);
}
