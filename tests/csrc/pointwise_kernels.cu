// Some of the pointwise activations' kernels, for a look at the machine code: all of them compile for too long.
#include "pointwise.cuh"

#define BOTH(F, T, ITEMS)                                                                                          \
  template __global__ void pointwise_kernel<F, T, ITEMS>(ITEMS, const T*, T*, Site<F, Real<T>>);                   \
  template __global__ void pointwise_backward_kernel<F, T, ITEMS>(ITEMS, const T*, const T*, T*, Site<F, Real<T>>, \
                                                                  double*);
#define CONTIGUOUS(F)    \
  BOTH(F, float, Planes) \
  BOTH(F, Half, Planes)  \
  BOTH(F, BFloat16, Planes)

namespace pwlu {
CONTIGUOUS(Prelu)
CONTIGUOUS(AconC)
CONTIGUOUS(Pau)
BOTH(Pau, float, Rows)
BOTH(Pau, double, Planes)
BOTH(Slaf<0>, float, Rows)
}  // namespace pwlu
