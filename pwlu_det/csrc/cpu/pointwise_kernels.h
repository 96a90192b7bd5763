// The kernels of the pointwise activations that each instruction set provides.
#pragma once

#include "../pointwise_list.h"
#include "types.h"

namespace pwlu {

// Kernels for elements of type T: `rows` rows of the channels of p, with a stride of `stride` elements between rows;
// a stride of 1 means one channel. Backward adds to sums, [channels, size]; either these or grad_x may be null if
// only the other is requested.
template <typename T>
struct PointwiseDtype {
  void (*forward)(const T* x, T* y, int64_t rows, int64_t stride, const ChannelParameters& p);
  void (*backward)(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride, const ChannelParameters& p,
                   double* sums);
};

// The kernels of one activation.
using PointwiseKernels = ByDtype<PointwiseDtype>;

struct AllPointwise {
#define PWLU_MEMBER(op, ...) PointwiseKernels op;
  PWLU_FORALL_POINTWISE(PWLU_MEMBER)
#undef PWLU_MEMBER

  const PointwiseKernels& of(Activation activation) const {
    switch (activation) {
#define PWLU_CASE(op, ...) \
  case Activation::op:     \
    return op;
      PWLU_FORALL_POINTWISE(PWLU_CASE)
#undef PWLU_CASE
    }
    __builtin_unreachable();
  }
};

}  // namespace pwlu
