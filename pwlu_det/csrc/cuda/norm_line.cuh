// A batch norm in a kernel.
#pragma once

#include "device.cuh"
#include "norm.h"

namespace pwlu {

template <typename R>
struct NormArrays {
  const R *mean, *var, *weight, *bias;
  R eps;

  explicit NormArrays(const Norm& n)
      : mean(static_cast<const R*>(n.mean)),
        var(static_cast<const R*>(n.var)),
        weight(static_cast<const R*>(n.weight)),
        bias(static_cast<const R*>(n.bias)),
        eps(R(n.eps)) {}
};

// The norm of one channel as a linear function: (x - mean) * scale + bias.
template <typename R>
struct NormLine {
  R mean = 0, rstd = 1, scale = 1, bias = 0;

  NormLine() = default;
  __device__ NormLine(const NormArrays<R>& arrays, int64_t channel)
      : mean(arrays.mean[channel]),
        rstd(1 / sqrt(arrays.var[channel] + arrays.eps)),
        scale(arrays.weight[channel] * rstd),
        bias(arrays.bias[channel]) {}
  __device__ __forceinline__ R operator()(R x) const { return plus(x, bias); }
  // With `other` in place of the bias.
  __device__ __forceinline__ R plus(R x, R other) const { return fma(x - mean, scale, other); }
};

}  // namespace pwlu
