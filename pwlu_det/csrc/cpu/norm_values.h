// The numbers of a batch norm, in double.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "numbers.h"

namespace pwlu {
namespace {

// The batch norm of all channels.
struct NormValues {
  std::vector<double> mean, var, weight, bias;
  double eps;

  double rstd(int64_t channel) const { return 1 / std::sqrt(var[channel] + eps); }
  double scale(int64_t channel) const { return weight[channel] * rstd(channel); }
};

inline NormValues norm_values(const at::Tensor& mean, const at::Tensor& var, const at::Tensor& weight,
                              const at::Tensor& bias, double eps) {
  return {doubles(mean), doubles(var), doubles(weight), doubles(bias), eps};
}

}  // namespace
}  // namespace pwlu
