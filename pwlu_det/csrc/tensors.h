// From the ops' tensors to what kernels take, and back, for CPU and CUDA.
#pragma once

#include <ATen/ATen.h>
#include <torch/version.h>

#include "layout.h"

namespace pwlu {
namespace {

using at::Tensor;

// ops/kernels.py looks for this in a library that cannot be loaded.
__attribute__((used)) const char kBuiltFor[] = "pwlu_det kernels for torch " TORCH_VERSION;

// The memory format that the kernels work in: that of x where it is dense, else contiguous.
inline at::MemoryFormat format_of(const Tensor& x) {
  if (x.is_contiguous()) return at::MemoryFormat::Contiguous;
  if (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  if (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)) return at::MemoryFormat::ChannelsLast3d;
  return at::MemoryFormat::Contiguous;
}

// The layout of a dense tensor [B, C, *] in that format, as seen by so many functions.
inline Layout layout_of(const Tensor& x, int64_t functions, at::MemoryFormat format) {
  if (functions == 1 || x.numel() == 0) return {1, 1, x.numel(), false};  // one row
  const int64_t inner = x.numel() / (x.size(0) * x.size(1));
  return {x.size(0), x.size(1), inner, inner == 1 || format != at::MemoryFormat::Contiguous};
}

// What an op returns in place of a gradient that output_mask does not ask for.
inline Tensor not_computed(const Tensor& like) { return at::empty({0}, like.options()); }

// A tensor like x, as the ops return it: with x's own strides where these are dense. Undefined if it is not asked
// for.
inline Tensor with_layout_of(const Tensor& x, const Tensor& dense, const Tensor& result) {
  if (!result.defined()) return not_computed(x);
  return x.is_same(dense) ? result : at::empty_like(x).copy_(result);
}

// What x is computed in.
inline at::ScalarType compute_dtype(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A parameter's gradient, with its shape and dtype: memory of its own, as autograd may keep it.
inline Tensor gradient_of(const Tensor& parameter, const Tensor& values) {
  return at::empty(parameter.sizes(), parameter.options()).copy_(values.reshape(parameter.sizes()));
}

}  // namespace
}  // namespace pwlu
