// Shared by the ops' files (*_cuda.cpp): converts tensors to arguments of the launchers, without synchronization.
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
inline Tensor as_computed(const Tensor& x, const Tensor& parameter) { return parameter.to(compute_dtype(x)); }

// The same, as a dense array.
inline Tensor dense_parameter(const Tensor& x, const Tensor& parameter) {
  return as_computed(x, parameter).contiguous();
}

// The memory of an output tensor, or null if the tensor is undefined.
template <typename T = void>
T* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// Memory for sums, or an undefined tensor if there are none.
inline Tensor make_workspace(const Tensor& x, int64_t doubles) {
  return doubles > 0 ? at::empty({doubles}, x.options().dtype(at::kDouble)) : Tensor();
}

inline void check_launched(int status) {
  TORCH_CHECK(status == 0, "pwlu_det: a CUDA kernel could not be launched: cudaError ", status);
}

inline void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

}  // namespace
}  // namespace pwlu
