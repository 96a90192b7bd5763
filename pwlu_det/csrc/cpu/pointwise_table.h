// The parameters of a pointwise activation, as the kernels read them.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "../pointwise_ops.h"
#include "types.h"

namespace pwlu {
namespace {

// The parameters by coefficient and channel: [size, channels].
class ParameterTable {
 public:
  explicit ParameterTable(const ParameterRows& rows) {
    std::vector<Tensor> wide;
    for (const Tensor& row : rows) wide.push_back(row.to(at::kDouble));
    wide_ = at::constant_pad_nd(at::cat(wide), {0, kLanePadding}).contiguous();
    narrow_ = wide_.to(at::kFloat);
  }
  int size() const { return int(wide_.size(0)); }
  int64_t channels() const { return wide_.size(1) - kLanePadding; }
  ChannelParameters of(int64_t channel, int channels) const {
    return {channels, size(), wide_.size(1), narrow_.const_data_ptr<float>() + channel,
            wide_.const_data_ptr<double>() + channel};
  }

 private:
  Tensor wide_, narrow_;
};

}  // namespace
}  // namespace pwlu
