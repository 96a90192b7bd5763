// Some kernels of the pointwise activations, for tests of the machine code: compiling all of them would take too
// long.
#include "pointwise.cuh"

#define ALL(F, T, ITEMS)                                                                                            \
  template __global__ void pointwise_kernel<F, TensorInput<T>, ITEMS>(ITEMS, TensorInput<T>, T*, Site<F, Real<T>>); \
  template __global__ void pointwise_backward_kernel<false, F, TensorInput<T>, ITEMS>(                              \
      ITEMS, const T*, TensorInput<T>, T*, Site<F, Real<T>>, double*);                                              \
  template __global__ void pointwise_backward_kernel<true, F, TensorInput<T>, ITEMS>(                               \
      ITEMS, const T*, TensorInput<T>, T*, Site<F, Real<T>>, double*);
#define CONTIGUOUS(F)   \
  ALL(F, float, Planes) \
  ALL(F, Half, Planes)  \
  ALL(F, BFloat16, Planes)

namespace pwlu {
CONTIGUOUS(Prelu)
CONTIGUOUS(AconC)
CONTIGUOUS(Pau)
ALL(Pau, float, Rows)
ALL(Pau, double, Planes)
ALL(Slaf<0>, float, Rows)
}  // namespace pwlu
