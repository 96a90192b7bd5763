// The kernels that each instruction set provides.
#pragma once

#include <cstdint>

#include "../pwlu_math.h"

namespace pwlu {

// 16-bit types, by their bits.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Sums over elements of x - shift and of its squares. With a shift near the mean they lose nothing to cancellation.
struct ShiftedSums {
  double sum, square;

  ShiftedSums& operator+=(ShiftedSums other) {
    sum += other.sum;
    square += other.square;
    return *this;
  }
};

// One channel's function, as tables of N + 2 entries.
template <typename R>
struct Function {
  Parameters<double> parameters;
  Line<R> line;
  const R* value;
  const R* slope;
  bool fits;  // R; else the channel is computed in double

  int bins() const { return parameters.num_intervals + 2; }
};

// The functions of neighbouring channels, as channels_last memory has them: one line for each lane of a vector.
// Behind the last channel there are kLanePadding more, so that whole vectors can be read.
constexpr int kBlockChannels = 256, kLanePadding = 16;

template <typename R>
struct Block {
  int channels;
  bool fits;
  const Function<R>* functions;
  const R *left, *right, *length, *middle, *scale;
  const R* pairs;  // [channels, N + 2, 2] of value and slope

  int bins() const { return functions->bins(); }
};

// Kernels for elements of type T, computed in R. Backward adds to the moments.
template <typename T, typename R>
struct DtypeKernels {
  // n elements of one channel
  void (*forward)(const T* x, T* y, int64_t n, const Function<R>& function);
  void (*backward)(const T* grad, const T* x, T* grad_x, int64_t n, const Function<R>& function, Moments moments);
  ShiftedSums (*relu_sums)(const T* x, T* y, int64_t n, double shift);
  // `rows` times the channels of a block, with `stride` elements from row to row; `moments` is one for each channel,
  // as are `shift` and `sums`
  void (*forward_block)(const T* x, T* y, int64_t rows, int64_t stride, const Block<R>& block);
  void (*backward_block)(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride, const Block<R>& block,
                         const Moments* moments);
  void (*relu_sums_block)(const T* x, T* y, int64_t rows, int64_t stride, int channels, const double* shift,
                          ShiftedSums* sums);
};

// The most parameters of a channel.
constexpr int kMaxParameters = 64;

// Parameters of neighbouring channels: parameter k of channel c is at k * stride + c. Of `narrow` whole vectors can
// be read behind the last channel.
struct ChannelParameters {
  int channels, size;
  int64_t stride;
  const float* narrow;
  const double* wide;
};

// Kernels of a pointwise activation for elements of type T: `rows` times the channels of p, with `stride` elements
// from row to row; with a stride of 1 it is one channel. Backward adds to sums, [channels, size].
template <typename T>
struct PointwiseDtype {
  void (*forward)(const T* x, T* y, int64_t rows, int64_t stride, const ChannelParameters& p);
  void (*backward)(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride, const ChannelParameters& p,
                   double* sums);
};

struct PointwiseKernels {
  PointwiseDtype<float> f32;
  PointwiseDtype<BFloat16> bf16;
  PointwiseDtype<Half> f16;
  PointwiseDtype<double> f64;
};

struct AllPointwise {
  PointwiseKernels prelu, swish, acon_b, acon_c, meta_acon_pixel, apl_3, apl, pau, srelu, mixture, slaf;
};

struct PwluKernels {
  DtypeKernels<float, float> f32;
  DtypeKernels<BFloat16, float> bf16;
  DtypeKernels<Half, float> f16;
  DtypeKernels<double, double> f64;
};

const PwluKernels& avx512_pwlu();  // these on x86-64 alone
const PwluKernels& avx2_pwlu();
const AllPointwise& avx512_pointwise();
const AllPointwise& avx2_pointwise();
const PwluKernels& baseline_pwlu();

}  // namespace pwlu
