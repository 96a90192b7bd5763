// Funnel ReLU's kernels as each instruction set provides them.
#pragma once

#include "types.h"

namespace pwlu {

// A part of an image: rows [begin, end) of one channel (stride 1, and all columns), or their columns [left, right) of
// channels that lie side by side. Pointers are to the first pixel of the image and its first such channel.
struct FreluBlock {
  int64_t height, width, begin, end, left, right;
  int64_t stride;  // from pixel to pixel
  int channels;
};

// The parameters of a channel, in this order; a kernel reads those that concern it. The normalised value is
// (conv - mean) * scale + beta, and the convolution's gradient scale * g + slope * (conv - mean) + offset.
enum FreluParameter { kWeight, kBias = 9, kShift, kMean, kScale, kBeta, kSlope, kOffset, kFreluParameters };

// Kernels for elements of type T. They add to what is in `sums`. Backward may have either grad_x or sums null, if
// only the other is asked for.
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
  Backward backward;  // the convolution's output is kept; sums as for inference
};

using FreluKernels = ByDtype<FreluDtype>;

}  // namespace pwlu
