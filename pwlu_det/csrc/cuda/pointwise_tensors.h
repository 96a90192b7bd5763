// The parameters of a pointwise activation as tensors.
#pragma once

#include "../pointwise_ops.h"
#include "glue.h"
#include "pointwise_launch.h"

namespace pwlu {
namespace {

// The coefficients of all rows; data(row) returns the memory of a row.
template <typename C, typename Data>
C coefficients_of(const ParameterRows& rows, const Data& data) {
  C all{};
  for (const Tensor& row : rows) {
    const int64_t step = row.stride(0) * row.element_size();
    for (int64_t k = 0; k < row.size(0); ++k) all.rows[all.size++] = {data(row) + k * step, row.stride(1)};
  }
  return all;
}

inline PointwiseParameters readable(const ParameterRows& rows) {
  return coefficients_of<PointwiseParameters>(
      rows, [](const Tensor& row) { return static_cast<const char*>(row.const_data_ptr()); });
}

inline PointwiseGradients writable(const ParameterRows& rows) {
  return coefficients_of<PointwiseGradients>(
      rows, [](const Tensor& row) { return static_cast<char*>(row.mutable_data_ptr()); });
}

// The parameters in the dtype that x is computed in.
inline ParameterRows converted(const Tensor& x, const ParameterRows& rows) {
  ParameterRows all;
  for (const Tensor& row : rows) all.push_back(as_computed(x, row));
  return all;
}

}  // namespace
}  // namespace pwlu
