// The choice of kernels, and of their dtype.
#pragma once

#include <ATen/ATen.h>

#include <cstdlib>
#include <string>
#include <type_traits>

#include "kernels.h"

namespace pwlu {
namespace {

using at::Tensor;

struct AllKernels {
  const char* name;
  const PwluKernels& pwlu;
  const AllPointwise* pointwise;  // or none: plain torch has vectors of its own
  const FreluKernels* frelu;      // likewise
};

#ifdef PWLU_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The best that the processor has, or a lesser one that PWLU_DET_CPU_KERNELS names.
AllKernels choose_kernels() {
#ifdef PWLU_X86
  const char* variable = std::getenv("PWLU_DET_CPU_KERNELS");
  const std::string most = variable ? variable : "avx512";
  if (has_avx512() && most == "avx512") return {"avx512", avx512_pwlu(), &avx512_pointwise(), &avx512_frelu()};
  if (has_avx2() && (most == "avx512" || most == "avx2"))
    return {"avx2", avx2_pwlu(), &avx2_pointwise(), &avx2_frelu()};
#endif
  return {"baseline", baseline_pwlu(), nullptr, nullptr};
}

const AllKernels& kernels() {
  static const AllKernels chosen = choose_kernels();
  return chosen;
}

// What elements of type T are computed in, and their kernels out of those for all dtypes.
template <typename T>
struct Dtype {
  using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

  template <typename K>
  static const auto& of(const K& kernels) {
    if constexpr (std::is_same_v<T, float>) {
      return kernels.f32;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return kernels.bf16;
    } else if constexpr (std::is_same_v<T, Half>) {
      return kernels.f16;
    } else {
      return kernels.f64;
    }
  }
};

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
