// The few numbers of a channel, such as parameters, as doubles and back. Operators of ATen would take microseconds
// each.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "convert.h"
#include "dispatch.h"

namespace pwlu {
namespace {

inline std::vector<double> doubles(const at::Tensor& values) {
  const at::Tensor dense = values.contiguous();
  std::vector<double> wide(dense.numel());
  with_dtype(dense, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(dense.const_data_ptr());
    for (double& number : wide) number = to_float(*from++);
  });
  return wide;
}

// A tensor like `like`, contiguous, whose rows (its first dimension) start every `stride` doubles.
inline at::Tensor from_doubles(const at::Tensor& like, const double* values, int64_t stride) {
  const at::Tensor result = at::empty(like.sizes(), like.options());
  const int64_t rows = result.numel() ? result.size(0) : 0, size = rows ? result.numel() / rows : 0;
  with_dtype(result, [&](auto type) {
    auto* to = static_cast<decltype(type)*>(result.mutable_data_ptr());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < size; ++j) from_double(values[i * stride + j], *to++);
    }
  });
  return result;
}

}  // namespace
}  // namespace pwlu
