// The launchers of Funnel ReLU's CUDA kernels. Needs neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "element.h"
#include "norm.h"

namespace pwlu {

// A dense tensor: [batch, channels, height, width], or [batch, height, width, channels] if channels_last.
struct Images {
  int64_t batch, channels, height, width;
  bool channels_last;
};

// The convolution: weight is [channels, 3, 3], bias is [channels]. These and all other arrays are double if the
// elements are, and float otherwise.
struct Convolution {
  const void *weight, *bias;
};
struct ConvolutionGradients {
  void *weight, *bias;
};

// The number of doubles of workspace that is enough for each of the launchers below.
int64_t frelu_workspace(const Images& images, Element element);

// The launchers start kernels on a stream and return a cudaError_t without waiting. No tensor may be empty.

// y = max(x, convolution of x)
int launch_frelu_inference(const Images& images, Element element, const Convolution& convolution, const void* x,
                           void* y, void* stream);

// The convolution's output, and its mean and population variance per channel.
int launch_frelu_convolve(const Images& images, Element element, const Convolution& convolution, const void* x,
                          void* conv, void* mean, void* var, double* workspace, void* stream);

// y = max(x, norm of conv)
int launch_frelu_normalise(const Images& images, Element element, const Norm& norm, const void* x, const void* conv,
                           void* y, void* stream);

// The gradients of the norm's weight and bias: [2, channels].
int launch_frelu_norm_sums(const Images& images, Element element, const Norm& norm, const void* grad, const void* x,
                           const void* conv, void* sums, double* workspace, void* stream);

// The gradients of x and of the convolution. In training, `saved` is the convolution's output, and `norm_means` are
// the sums of launch_frelu_norm_sums divided by the number of elements that the norm's statistics are computed over.
// In inference, norm and norm_means are null, and `saved` is y. grad_x and gradients may be null if they are not
// needed; workspace is used only for gradients.
int launch_frelu_backward(const Images& images, Element element, const Convolution& convolution, const Norm* norm,
                          const void* norm_means, const void* grad, const void* x, const void* saved, void* grad_x,
                          const ConvolutionGradients* gradients, double* workspace, void* stream);

}  // namespace pwlu
