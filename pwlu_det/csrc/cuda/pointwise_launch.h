// The launchers of the CUDA kernels of the pointwise activations. Needs neither torch nor CUDA.
#pragma once

#include "../layout.h"
#include "../pointwise_list.h"
#include "element.h"

namespace pwlu {

// The parameters of an activation in the order of the op's arguments, or the memory for their gradients. Each of
// `size` coefficients has one number per channel, `stride` numbers apart. They are double if the elements are, and
// float otherwise.
template <typename Void>
struct Coefficients {
  struct Row {
    Void* data;
    int64_t stride;
  };
  int size;
  Row rows[kMaxParameters];
};
using PointwiseParameters = Coefficients<const void>;
using PointwiseGradients = Coefficients<void>;

// The number of doubles of workspace that launch_pointwise_backward needs.
int64_t pointwise_workspace(const Layout& layout, Element element, int size);

// The launchers start kernels on a stream and return a cudaError_t without waiting. No tensor may be empty.
int launch_pointwise(Activation activation, const Layout& layout, Element element,
                     const PointwiseParameters& parameters, const void* x, void* y, void* stream);

// grad_x and gradients may be null if they are not needed; workspace is used only for gradients.
int launch_pointwise_backward(Activation activation, const Layout& layout, Element element,
                              const PointwiseParameters& parameters, const void* grad, const void* x, void* grad_x,
                              const PointwiseGradients* gradients, double* workspace, void* stream);

}  // namespace pwlu
