// The kernels that each instruction set provides.
#pragma once

#include <cstdint>

#include "../pointwise_list.h"
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

// One channel's function, as tables of N + 2 entries, behind which whole vectors can be read.
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

// By their number.
struct AllPointwise {
#define PWLU_MEMBER(op, ...) PointwiseKernels op;
  PWLU_FORALL_POINTWISE(PWLU_MEMBER)
#undef PWLU_MEMBER
};

// A part of an image for Funnel ReLU: rows [begin, end) of one channel (stride 1, and all columns), or their columns
// [left, right) of channels that lie side by side. Pointers are to the first pixel of the image and its first such
// channel.
struct FreluBlock {
  int64_t height, width, begin, end, left, right;
  int64_t stride;  // from pixel to pixel
  int channels;
};

// The parameters of a channel, in this order; a kernel reads those that concern it. The normalised value is
// (conv - mean) * scale + beta, and the convolution's gradient scale * g + slope * (conv - mean) + offset.
enum FreluParameter { kWeight, kBias = 9, kShift, kMean, kScale, kBeta, kSlope, kOffset, kFreluParameters };

// Funnel ReLU for elements of type T. What is in `sums` is added to.
template <typename T>
struct FreluDtype {
  using Backward = void (*)(const T* grad, const T* x, const T* kept, T* grad_x, const FreluBlock& block,
                            const ChannelParameters& p, double* sums);

  void (*inference)(const T* x, T* y, const FreluBlock& block, const ChannelParameters& p);
  Backward inference_backward;  // y is kept; sums are the gradients of weight and bias, [channels, 10]
  // sums of conv - shift and of its square, [channels, 2]
  void (*convolve)(const T* x, T* conv, const FreluBlock& block, const ChannelParameters& p, double* sums);
  void (*normalise)(const T* x, const T* conv, T* y, const FreluBlock& block, const ChannelParameters& p);
  // sums of g and of g * (conv - mean), [channels, 2], where g is the gradient of the normalised value
  void (*norm_sums)(const T* grad, const T* x, const T* conv, const FreluBlock& block, const ChannelParameters& p,
                    double* sums);
  Backward backward;  // the convolution's output is kept; sums as above
};

struct FreluKernels {
  FreluDtype<float> f32;
  FreluDtype<BFloat16> bf16;
  FreluDtype<Half> f16;
  FreluDtype<double> f64;
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
const FreluKernels& avx512_frelu();
const FreluKernels& avx2_frelu();
const PwluKernels& baseline_pwlu();

}  // namespace pwlu
