// ReLU and PWLU after a norm; N of PWLU, or 0 for ReLU, is the last number.
#include "norm_pwlu.cu"
#include "norm.cu"
#include "pwlu_phase1.cu"
#include "pwlu_forward.cu"
#include "pwlu_backward.cu"

#include "emulation_norm.h"

extern "C" int run_case(const int64_t* numbers, void** buffers) {
  using namespace pwlu;
  const int n = int(numbers[8]);
  if (n == 0) {
    return run_norm_case(
        numbers, buffers, 0,
        [](const NormCall& c, void* y) { return launch_norm_relu(c.layout, c.element, c.source, y, nullptr); },
        [](const NormCall& c, const void* grad, void* dz, void**, double* sums) {
          return dz ? launch_norm_relu_backward(c.layout, c.element, c.source, grad, dz, sums, nullptr) : 0;
        });
  }
  void** p = buffers + 8;
  const PwluParameters parameters{p[0], p[1], p[2], p[3], p[4], n};
  return run_norm_case(
      numbers, buffers, 5,
      [&](const NormCall& c, void* y) {
        return launch_norm_pwlu(c.layout, c.element, c.source, parameters, y, nullptr);
      },
      [&](const NormCall& c, const void* grad, void* dz, void** by, double* sums) {
        std::vector<double> workspace(pwlu_backward_workspace(c.layout, c.element, n), NAN);
        return launch_norm_pwlu_backward(c.layout, c.element, c.source, parameters, grad, dz,
                                         {by[0], by[1], by[2], by[3], by[4]}, workspace.data(), sums, nullptr);
      });
}
