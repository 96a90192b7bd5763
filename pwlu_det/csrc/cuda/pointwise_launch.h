// The CUDA kernels of the pointwise activations, as seen from the host. No torch in here, and no CUDA.
#pragma once

#include "../layout.h"
#include "../pointwise_list.h"
#include "element.h"

namespace pwlu {

// The parameters of an activation in the order of the op's arguments, or places for their gradients: each of `size`
// coefficients is a number for each channel, `stride` numbers from one to the next; in double where the elements are,
// else in float.
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

// Doubles of workspace that launch_pointwise_backward needs.
int64_t pointwise_workspace(const Layout& layout, Element element, int size);

// These start kernels on a stream and return at once, with a cudaError_t. Nothing may be empty.
int launch_pointwise(Activation activation, const Layout& layout, Element element,
                     const PointwiseParameters& parameters, const void* x, void* y, void* stream);

// grad_x or gradients may be null: what is not wanted. The workspace is for gradients.
int launch_pointwise_backward(Activation activation, const Layout& layout, Element element,
                              const PointwiseParameters& parameters, const void* grad, const void* x, void* grad_x,
                              const PointwiseGradients* gradients, double* workspace, void* stream);

}  // namespace pwlu
