// Dispatch by instruction set and by dtype.
#pragma once

#include <ATen/ATen.h>

#include <cstdlib>
#include <string>

#include "kernels.h"

namespace pwlu {
namespace {

using at::Tensor;

#ifdef PWLU_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The best kernels that the processor supports, up to the ones that PWLU_DET_CPU_KERNELS names.
const Kernels& choose_kernels() {
#ifdef PWLU_X86
  const char* variable = std::getenv("PWLU_DET_CPU_KERNELS");
  const std::string most = variable ? variable : "avx512";
  if (has_avx512() && most == "avx512") return avx512_kernels();
  if (has_avx2() && (most == "avx512" || most == "avx2")) return avx2_kernels();
#endif
  return baseline_kernels();
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

// Calls f with a value of the element type of x.
template <typename F>
void with_dtype(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(float{});
    case at::kBFloat16:
      return f(BFloat16{});
    case at::kHalf:
      return f(Half{});
    case at::kDouble:
      return f(double{});
    default:
      TORCH_CHECK(false, "pwlu_det: dtype ", x.scalar_type(), " is not supported");
  }
}

}  // namespace
}  // namespace pwlu
