// The launchers of a norm followed by an activation. Needs neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../layout.h"
#include "element.h"
#include "norm.h"
#include "pointwise_launch.h"
#include "pwlu_launch.h"

namespace pwlu {

// The input of the activation: norm(x), norm(x) + added, or norm(x) + added_norm(added). `added` and added_norm.mean
// may be null. The layout of x has a row per channel, also if all channels share one function.
struct NormSource {
  const void* x;
  Norm norm;
  const void* added;
  Norm added_norm;
};

// The launchers start kernels on a stream and return a cudaError_t without waiting. No tensor may be empty.

// Mean and population variance of x per channel; the workspace is that of launch_pwlu_phase1.
int launch_norm_statistics(const Layout& layout, Element element, const void* x, void* mean, void* var,
                           double* workspace, void* stream);

int launch_norm_relu(const Layout& layout, Element element, const NormSource& source, void* y, void* stream);
int launch_norm_pwlu(const Layout& layout, Element element, const NormSource& source,
                     const PwluParameters& parameters, void* y, void* stream);
int launch_norm_pointwise(Activation activation, const Layout& layout, Element element, const NormSource& source,
                          const PointwiseParameters& parameters, void* y, void* stream);

// Backward has two steps. The first computes dz, the gradient of the activation's input, the gradients of the
// activation's parameters, and (if norm_sums is not null) the sums of the norms' backward, which has room for
// norm_sums_size doubles. dz may be null, and may be stored where the gradient of x or of `added` belongs.
int64_t norm_sums_size(const Layout& layout, Element element);
int launch_norm_relu_backward(const Layout& layout, Element element, const NormSource& source, const void* grad,
                              void* dz, double* norm_sums, void* stream);
int launch_norm_pwlu_backward(const Layout& layout, Element element, const NormSource& source,
                              const PwluParameters& parameters, const void* grad, void* dz,
                              const PwluGradients& gradients, double* workspace, double* norm_sums, void* stream);
int launch_norm_pointwise_backward(Activation activation, const Layout& layout, Element element,
                                   const NormSource& source, const PointwiseParameters& parameters, const void* grad,
                                   void* dz, const PointwiseGradients& gradients, double* workspace,
                                   double* norm_sums, void* stream);

// The gradients of the norm's weight and bias from the sums, [2, channels], and those of the added norm, if there is
// one, [4, channels].
int launch_norm_finish(const Layout& layout, Element element, const NormSource& source, const double* norm_sums,
                       void* gradients, void* stream);

// The second step: the gradient of x, or of `added` with its norm, from dz. grad_x may be dz. With the statistics of
// the batch, `gradients` is those of the norm's weight and bias; with given statistics, it is null.
int launch_norm_gradient(const Layout& layout, Element element, const Norm& norm, const void* dz, const void* x,
                         const void* gradients, void* grad_x, void* stream);

}  // namespace pwlu
