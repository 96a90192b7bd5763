// Converts the tensors of the ops to kernel arguments and back, for CPU and CUDA.
#pragma once

#include <ATen/ATen.h>
#include <torch/version.h>

#include "layout.h"

namespace pwlu {
namespace {

using at::Tensor;

// ops/kernels.py searches for this string in a library that cannot be loaded.
__attribute__((used)) const char kBuiltFor[] = "pwlu_det kernels for torch " TORCH_VERSION;

// The memory format that the kernels work in: that of x if x is dense, else contiguous.
inline at::MemoryFormat format_of(const Tensor& x) {
  if (x.is_contiguous()) return at::MemoryFormat::Contiguous;
  if (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  if (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)) return at::MemoryFormat::ChannelsLast3d;
  return at::MemoryFormat::Contiguous;
}

// The layout of a dense tensor [B, C, *] in this format. The number of functions is C, or 1 if all channels share
// one.
inline Layout layout_of(const Tensor& x, int64_t functions, at::MemoryFormat format) {
  if (functions == 1 || x.numel() == 0) return {1, 1, x.numel(), false};  // one row
  const int64_t inner = x.numel() / (x.size(0) * x.size(1));
  return {x.size(0), x.size(1), inner, inner == 1 || format != at::MemoryFormat::Contiguous};
}

// The result of an op for a gradient that output_mask does not request.
inline Tensor not_computed(const Tensor& like) { return at::empty({0}, like.options()); }

// Converts a result to the layout of x, as the ops return it: with the strides of x if x is dense in memory. An
// undefined result is a gradient that is not requested.
inline Tensor with_layout_of(const Tensor& x, const Tensor& dense, const Tensor& result) {
  if (!result.defined()) return not_computed(x);
  return x.is_same(dense) ? result : at::empty_like(x).copy_(result);
}

// The dtype of the arithmetic on x.
inline at::ScalarType compute_dtype(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A parameter's gradient, with the parameter's shape and dtype. It is a copy, as autograd may keep it.
inline Tensor gradient_of(const Tensor& parameter, const Tensor& values) {
  return at::empty(parameter.sizes(), parameter.options()).copy_(values.reshape(parameter.sizes()));
}

}  // namespace
}  // namespace pwlu
