// Funnel ReLU's CUDA kernels as seen from the host. No torch in here, and no CUDA.
#pragma once

#include <cstdint>

#include "element.h"

namespace pwlu {

// Memory that is dense: [batch, channels, height, width], or with channels last [batch, height, width, channels].
struct Images {
  int64_t batch, channels, height, width;
  bool channels_last;
};

// The convolution: weight is [channels, 3, 3], bias [channels]. These, and what follows, are in double where the
// elements are, else in float.
struct Convolution {
  const void *weight, *bias;
};
struct ConvolutionGradients {
  void *weight, *bias;
};

// The batch norm: all are [channels].
struct Norm {
  const void *mean, *var, *weight, *bias;
  double eps;
};

// Doubles of workspace that each of the launches below needs at most.
int64_t frelu_workspace(const Images& images, Element element);

// These start kernels on a stream and return at once, with a cudaError_t. Nothing may be empty.

// y = max(x, convolution of x)
int launch_frelu_inference(const Images& images, Element element, const Convolution& convolution, const void* x,
                           void* y, void* stream);

// The convolution's output, with its mean and population variance by channel.
int launch_frelu_convolve(const Images& images, Element element, const Convolution& convolution, const void* x,
                          void* conv, void* mean, void* var, double* workspace, void* stream);

// y = max(x, norm of conv)
int launch_frelu_normalise(const Images& images, Element element, const Norm& norm, const void* x, const void* conv,
                           void* y, void* stream);

// The gradients of the norm's weight and bias: [2, channels].
int launch_frelu_norm_sums(const Images& images, Element element, const Norm& norm, const void* grad, const void* x,
                           const void* conv, void* sums, double* workspace, void* stream);

// The gradients of x and of the convolution. In training `kept` is the convolution's output, and `norm_means` are
// these sums over the number of elements that the norm's statistics are of. In inference there is no norm, and y is
// kept. grad_x or gradients may be null: what is not wanted. The workspace is for gradients.
int launch_frelu_backward(const Images& images, Element element, const Convolution& convolution, const Norm* norm,
                          const void* norm_means, const void* grad, const void* x, const void* kept, void* grad_x,
                          const ConvolutionGradients* gradients, double* workspace, void* stream);

}  // namespace pwlu
