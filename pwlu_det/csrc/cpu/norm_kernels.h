// The kernels of a norm followed by an activation that each instruction set provides.
//
// They cover what comes before the activation and after it. The activation itself runs on its own kernels, on a
// buffer that stays in the L1 cache.
#pragma once

#include "types.h"

namespace pwlu {

// The parameters of a channel, in this order. The normalized value is (x - mean) * scale + beta, and the gradient of
// x is scale * dz + slope * (x - mean) + offset. The same parameters of the added tensor's norm follow; its beta is
// included in the first one. Without a norm, the added tensor has a scale of 1.
enum NormParameter { kNormMean, kNormScale, kNormBeta, kNormSlope, kNormOffset, kNormParameters };

// The sums of dz, of dz * (x - mean) and of dz * (added - its mean).
constexpr int kNormSums = 3;

// `rows` rows of the channels of p in a tensor, with a stride of `stride` elements between rows; a stride of 1 means
// one channel.
struct NormRows {
  int64_t rows, stride;
  const ChannelParameters& p;
};

// Kernels for elements of type T. Buffers are of the compute type and have no space between rows.
template <typename T>
struct NormDtype {
  using R = Compute<T>;

  // adds to sums, [channels]
  void (*statistics)(const T* x, const NormRows& rows, const double* shift, ShiftedSums* sums);
  void (*normalise)(const T* x, const T* added, const NormRows& rows, R* z);  // `added` may be null, here and below
  // adds to sums, [channels, kNormSums]
  void (*sum)(const R* dz, const T* x, const T* added, const NormRows& rows, double* sums);
  // The gradient of x, or of the added tensor if `added` is set. If x is null, the statistics are given, and the
  // gradient is scale * dz.
  void (*gradient)(const R* dz, const T* x, const NormRows& rows, bool added, T* grad_x);
  void (*load)(const T* x, const NormRows& rows, R* buffer);
  void (*store)(const R* buffer, const NormRows& rows, T* x);
  void (*relu)(const R* z, R* y, int64_t n);
  void (*relu_backward)(const R* grad, const R* z, R* dz, int64_t n);
};

using NormKernels = ByDtype<NormDtype>;

}  // namespace pwlu
