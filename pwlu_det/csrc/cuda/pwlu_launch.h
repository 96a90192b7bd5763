// The launchers of PWLU's CUDA kernels. Needs neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../layout.h"
#include "element.h"

namespace pwlu {

// One function per channel: points is [channels, num_intervals + 1], the others are [channels]. They are double if
// the elements are, and float otherwise.
struct PwluParameters {
  const void *points, *left_bound, *right_bound, *left_slope, *right_slope;
  int num_intervals;
};

// Memory for the gradients, with the same shapes.
struct PwluGradients {
  void *points, *left_bound, *right_bound, *left_slope, *right_slope;
};

// Whether tables of this many intervals fit in shared memory for channels last. If not, x must be contiguous.
bool pwlu_channels_last_fits(Element element, int num_intervals);

// The number of doubles of workspace that the launchers of backward and phase1 need.
int64_t pwlu_backward_workspace(const Layout& layout, Element element, int num_intervals);
int64_t pwlu_phase1_workspace(const Layout& layout, Element element);

// The launchers start kernels on a stream and return a cudaError_t without waiting. No tensor may be empty.
int launch_pwlu(const Layout& layout, Element element, const PwluParameters& parameters, const void* x, void* y,
                void* stream);

// grad_x and gradients may be null if they are not needed; workspace is used only for gradients.
int launch_pwlu_backward(const Layout& layout, Element element, const PwluParameters& parameters, const void* grad,
                         const void* x, void* grad_x, const PwluGradients* gradients, double* workspace,
                         void* stream);

// y = relu(x), and the mean and the sum of squared deviations of x per channel, in double if the elements are double,
// and in float otherwise.
int launch_pwlu_phase1(const Layout& layout, Element element, const void* x, void* y, void* mean, void* deviation,
                       double* workspace, void* stream);

}  // namespace pwlu
