// The parameters of PWLU as tensors.
#pragma once

#include "glue.h"
#include "pwlu_launch.h"

namespace pwlu {
namespace {

// The parameters, or tensors with their shapes.
struct ParameterTensors {
  Tensor points, left_bound, right_bound, left_slope, right_slope;

  template <typename F>
  ParameterTensors map(const F& f) const {
    return {f(points), f(left_bound), f(right_bound), f(left_slope), f(right_slope)};
  }
  // As the kernels read them: dense, in the dtype that x is computed in.
  ParameterTensors prepared_for(const Tensor& x) const {
    return map([&](const Tensor& parameter) { return dense_parameter(x, parameter); });
  }
  int64_t count() const { return points.size(0); }
  int num_intervals() const { return int(points.size(1)) - 1; }
  PwluParameters read() const {
    return {points.const_data_ptr(),     left_bound.const_data_ptr(),  right_bound.const_data_ptr(),
            left_slope.const_data_ptr(), right_slope.const_data_ptr(), num_intervals()};
  }
  PwluGradients write() const {
    return {data_or_null(points), data_or_null(left_bound), data_or_null(right_bound), data_or_null(left_slope),
            data_or_null(right_slope)};
  }
};

// The memory format in which x is processed: contiguous if the tables are too large for channels last.
inline at::MemoryFormat format_for(const Tensor& x, const ParameterTensors& parameters) {
  const bool any = parameters.count() == 1 || pwlu_channels_last_fits(element_of(x), parameters.num_intervals());
  return any ? format_of(x) : at::MemoryFormat::Contiguous;
}

}  // namespace
}  // namespace pwlu
