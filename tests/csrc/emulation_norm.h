// Calls the launchers of a norm followed by an activation for the tests, in the order in which norm_cuda.cpp does.
#pragma once

#include "emulation.h"

enum { kForward, kBackward, kBackwardX, kBackwardParameters };
enum { kNothing, kTensor, kNorm };  // what is added

struct NormCall {
  pwlu::Layout layout;
  pwlu::Element element;
  pwlu::NormSource source;
};

// See cuda_norm.py. numbers: batch, channels, inner, channels last, element, what is added, whether the statistics
// are given, op, and then those of the activation. buffers: mean, var, weight and bias of the norm, the same of the
// added tensor's norm, the parameters, x, grad, added, and then the outputs: y, or the gradients of x, of the added
// tensor and of the norms, and those of the parameters.
//
// forward(call, y) and backward(call, grad, dz, gradients, norm_sums) are the activation's.
template <typename Forward, typename Backward>
int run_norm_case(const int64_t* numbers, void** buffers, int parameters, const Forward& forward,
                  const Backward& backward) {
  using namespace pwlu;
  const Layout layout{numbers[0], numbers[1], numbers[2], numbers[3] != 0};
  const auto element = Element(numbers[4]);
  const int64_t added = numbers[5], op = numbers[7];
  void **norms = buffers, **tensors = buffers + 8 + parameters, **out = tensors + 3;
  if (!numbers[6]) {
    std::vector<double> workspace(pwlu_phase1_workspace(layout, element), NAN);
    for (int i = 0; i < (added == kNorm ? 2 : 1); ++i) {
      void** own = norms + 4 * i;
      const int status =
          launch_norm_statistics(layout, element, tensors[2 * i], own[0], own[1], workspace.data(), nullptr);
      if (status != 0) return status;
    }
  }
  const auto norm = [](void** own, double eps) { return Norm{own[0], own[1], own[2], own[3], eps}; };
  const Norm own = norm(norms, 1e-5), other = added == kNorm ? norm(norms + 4, 1e-3) : Norm{};
  const NormCall call{layout, element, {tensors[0], own, added == kNothing ? nullptr : tensors[2], other}};
  if (op == kForward) return forward(call, out[0]);
  if (op == kBackwardParameters) return backward(call, tensors[1], nullptr, out, nullptr);

  void *grad_x = out[0], *grad_added = out[1], *dz = added == kTensor ? grad_added : grad_x;
  std::vector<double> sums(norm_sums_size(layout, element), NAN), unused(1 << 14);
  std::vector<void*> elsewhere(parameters, unused.data());
  int status = backward(call, tensors[1], dz, op == kBackward ? out + 3 : elsewhere.data(), sums.data());
  const auto run = [&](const auto& launcher, const auto&... arguments) {
    if (status == 0) status = launcher(layout, element, arguments..., nullptr);
  };
  char* rows = static_cast<char*>(out[2]);
  const int64_t two_rows = 2 * layout.channels * (element == Element::kDouble ? sizeof(double) : sizeof(float));
  const auto of = [&](int norm) { return static_cast<const void*>(numbers[6] ? nullptr : rows + norm * two_rows); };
  run(launch_norm_finish, call.source, sums.data(), out[2]);
  if (added == kNorm) run(launch_norm_gradient, other, dz, call.source.added, of(1), grad_added);
  run(launch_norm_gradient, own, dz, call.source.x, of(0), grad_x);
  return status;
}
