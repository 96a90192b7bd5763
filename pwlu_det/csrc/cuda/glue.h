// What the CUDA ops' files share: from tensors to the launchers. Nothing here waits for the GPU.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../tensors.h"
#include "element.h"

namespace pwlu {
namespace {

inline Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Element::kFloat;
    case at::kDouble:
      return Element::kDouble;
    case at::kHalf:
      return Element::kHalf;
    case at::kBFloat16:
      return Element::kBFloat16;
    default:
      TORCH_CHECK(false, "pwlu_det: dtype ", x.scalar_type(), " is not supported");
  }
}

// A parameter in the dtype that x is computed in.
inline Tensor as_computed(const Tensor& x, const Tensor& parameter) {
  TORCH_CHECK(parameter.device() == x.device(), "pwlu_det: x is on ", x.device(), " and a parameter on ",
              parameter.device());
  return parameter.to(compute_dtype(x));
}

// The same as a dense array.
inline Tensor dense_parameter(const Tensor& x, const Tensor& parameter) {
  return as_computed(x, parameter).contiguous();
}

inline void check_gradient(const Tensor& grad, const Tensor& x) {
  TORCH_CHECK(grad.device() == x.device() && grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
              "pwlu_det: grad and x differ in device, shape or dtype");
}

inline void check_launched(int status) {
  TORCH_CHECK(status == 0, "pwlu_det: a CUDA kernel did not start: cudaError ", status);
}

inline void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

}  // namespace
}  // namespace pwlu
