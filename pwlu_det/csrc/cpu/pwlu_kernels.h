// The PWLU kernels that each instruction set provides.
#pragma once

#include "../pwlu_math.h"
#include "types.h"

namespace pwlu {

// The function of one channel, as tables of N + 2 entries, padded so that whole vectors can be read.
template <typename R>
struct PwluFunction {
  Parameters<double> parameters;
  Line<R> line;
  const R* value;
  const R* slope;
  bool fits;  // in R; if false, the channel is computed in double

  PWLU_INLINE int bins() const { return parameters.num_intervals + 2; }
};

// The functions of adjacent channels, for channels_last memory: one line for each lane of a vector.
template <typename R>
struct PwluBlock {
  int channels;
  bool fits;
  const PwluFunction<R>* functions;
  const R *left, *right, *length, *middle, *scale;
  const R* pairs;  // [channels, N + 2, 2] of value and slope

  PWLU_INLINE int bins() const { return functions->bins(); }
};

// Kernels for elements of type T. Backward adds to the moments; either these or grad_x may be null if only the other
// is requested.
template <typename T>
struct PwluDtype {
  using R = Compute<T>;

  // Fills the tables, and sets everything but the parameters.
  void (*prepare)(PwluFunction<R>& function, R* value, R* slope);
  // The gradients of the parameters from the moments: those of the points, then of B_L, B_R, K_L and K_R.
  void (*finish)(const PwluFunction<R>& function, const Moments& moments, double* grads);
  // n elements of one channel
  void (*forward)(const T* x, T* y, int64_t n, const PwluFunction<R>& function);
  void (*backward)(const T* grad, const T* x, T* grad_x, int64_t n, const PwluFunction<R>& function,
                   const Moments* moments);
  ShiftedSums (*relu_sums)(const T* x, T* y, int64_t n, double shift);
  // `rows` rows of the channels of a block, with a stride of `stride` elements between rows; moments, shift and sums
  // have one entry per channel
  void (*forward_block)(const T* x, T* y, int64_t rows, int64_t stride, const PwluBlock<R>& block);
  void (*backward_block)(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride,
                         const PwluBlock<R>& block, const Moments* moments);
  void (*relu_sums_block)(const T* x, T* y, int64_t rows, int64_t stride, int channels, const double* shift,
                          ShiftedSums* sums);
};

using PwluKernels = ByDtype<PwluDtype>;

}  // namespace pwlu
