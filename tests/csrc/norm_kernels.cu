// Some kernels of a norm followed by an activation, for tests of the machine code: float, contiguous.
#include "norm_input.cuh"
#include "pwlu_backward.cuh"
#include "pwlu_forward.cuh"
#include "norm.cuh"
#include "pointwise.cuh"

namespace pwlu {
using In = NormInput<float>;

template __global__ void norm_relu_kernel<float, Planes>(Planes, In, float*);
template __global__ void norm_relu_backward_kernel<float, Planes>(Planes, const float*, In, float*);
template __global__ void norm_gradient_kernel<float, Planes>(Planes, const float*, const float*, NormArrays<float>,
                                                             const float*, double, float*);
template __global__ void pwlu_kernel<In, Planes>(Planes, In, float*, ParameterArrays<float>, bool);
template __global__ void pwlu_backward_kernel<true, In, Planes>(Planes, const float*, In, float*,
                                                                ParameterArrays<float>, Windows, Partials);
template __global__ void pointwise_kernel<AconC, In, Planes>(Planes, In, float*, Site<AconC, float>);
template __global__ void pointwise_backward_kernel<true, AconC, In, Planes>(Planes, const float*, In, float*,
                                                                            Site<AconC, float>, double*);
template __global__ void pointwise_backward_kernel<true, Pau, In, Planes>(Planes, const float*, In, float*,
                                                                          Site<Pau, float>, double*);
}  // namespace pwlu
