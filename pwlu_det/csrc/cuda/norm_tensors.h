// The arrays of a batch norm as tensors.
#pragma once

#include "glue.h"
#include "norm.h"

namespace pwlu {
namespace {

struct NormTensors {
  Tensor mean, var, weight, bias;
  double eps;

  NormTensors(const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& weight, const Tensor& bias,
              double eps)
      : mean(dense_parameter(x, mean)),
        var(dense_parameter(x, var)),
        weight(dense_parameter(x, weight)),
        bias(dense_parameter(x, bias)),
        eps(eps) {}
  Norm arrays() const {
    return {mean.const_data_ptr(), var.const_data_ptr(), weight.const_data_ptr(), bias.const_data_ptr(), eps};
  }
};

}  // namespace
}  // namespace pwlu
