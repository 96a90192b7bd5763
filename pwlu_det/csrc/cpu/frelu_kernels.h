// The Funnel ReLU kernels that each instruction set provides.
#pragma once

#include "types.h"

namespace pwlu {

// A part of an image: rows [begin, end) of one channel (stride 1, all columns), or columns [left, right) of these
// rows for adjacent channels. Pointers are to the first pixel of the image in the first of these channels.
struct FreluBlock {
  int64_t height, width, begin, end, left, right;
  int64_t stride;  // from pixel to pixel
  int channels;
};

// The parameters of a channel, in this order; a kernel reads only those that it needs. The normalized value is
// (conv - mean) * scale + beta, and the gradient of the convolution is scale * g + slope * (conv - mean) + offset.
enum FreluParameter { kWeight, kBias = 9, kShift, kMean, kScale, kBeta, kSlope, kOffset, kFreluParameters };

// Kernels for elements of type T. They add to `sums`. In backward, either grad_x or sums may be null if only the
// other is requested.
template <typename T>
struct FreluDtype {
  using Backward = void (*)(const T* grad, const T* x, const T* kept, T* grad_x, const FreluBlock& block,
                            const ChannelParameters& p, double* sums);

  void (*inference)(const T* x, T* y, const FreluBlock& block, const ChannelParameters& p);
  Backward inference_backward;  // `kept` is y; sums are the gradients of weight and bias, [channels, 10]
  // the sums of conv - shift and of its square, [channels, 2]
  void (*convolve)(const T* x, T* conv, const FreluBlock& block, const ChannelParameters& p, double* sums);
  void (*normalise)(const T* x, const T* conv, T* y, const FreluBlock& block, const ChannelParameters& p);
  // the sums of g and of g * (conv - mean), [channels, 2], where g is the gradient of the normalized value
  void (*norm_sums)(const T* grad, const T* x, const T* conv, const FreluBlock& block, const ChannelParameters& p,
                    double* sums);
  Backward backward;  // `kept` is the convolution's output; sums as in inference
};

using FreluKernels = ByDtype<FreluDtype>;

}  // namespace pwlu
