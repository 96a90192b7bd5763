// The kernels of the pointwise activations as each instruction set provides them.
#pragma once

#include "../pointwise_list.h"
#include "types.h"

namespace pwlu {

// Kernels for elements of type T: `rows` times the channels of p, with `stride` elements from row to row; with a
// stride of 1 it is one channel. Backward adds to sums, [channels, size]; either these or grad_x may be null, if only
// the other is asked for.
template <typename T>
struct PointwiseDtype {
  void (*forward)(const T* x, T* y, int64_t rows, int64_t stride, const ChannelParameters& p);
  void (*backward)(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride, const ChannelParameters& p,
                   double* sums);
};

// Those of one activation.
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
