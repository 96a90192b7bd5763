// PWLU's CUDA kernels as seen from the host. No torch in here, and no CUDA.
#pragma once

#include <cstdint>

#include "../layout.h"
#include "element.h"

namespace pwlu {

// One function for each channel: points is [channels, num_intervals + 1], the others are [channels]; in double
// where the elements are, else in float.
struct PwluParameters {
  const void *points, *left_bound, *right_bound, *left_slope, *right_slope;
  int num_intervals;
};

// Where gradients of the same shapes go.
struct PwluGradients {
  void *points, *left_bound, *right_bound, *left_slope, *right_slope;
};

// Whether tables of so many intervals fit the kernels for channels last. If not, x has to be contiguous.
bool pwlu_channels_last_fits(Element element, int num_intervals);

// Doubles of workspace that the launches of backward and phase1 need.
int64_t pwlu_backward_workspace(const Layout& layout, Element element, int num_intervals);
int64_t pwlu_phase1_workspace(const Layout& layout, Element element);

// These start kernels on a stream and return at once, with a cudaError_t. Nothing may be empty.
int launch_pwlu(const Layout& layout, Element element, const PwluParameters& parameters, const void* x, void* y,
                void* stream);

// grad_x or gradients may be null: what is not wanted. The workspace is for gradients.
int launch_pwlu_backward(const Layout& layout, Element element, const PwluParameters& parameters, const void* grad,
                         const void* x, void* grad_x, const PwluGradients* gradients, double* workspace,
                         void* stream);

// y = relu(x); mean and squared deviations of x by channel, in double where the elements are, else in float.
int launch_pwlu_phase1(const Layout& layout, Element element, const void* x, void* y, void* mean, void* deviation,
                       double* workspace, void* stream);

}  // namespace pwlu
