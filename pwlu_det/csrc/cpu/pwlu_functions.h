// The functions of all channels, as tables in the kernels' arithmetic type.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <vector>

#include "dispatch.h"
#include "items.h"
#include "numbers.h"

namespace pwlu {
namespace {

// Preparing the tables of a channel takes about as long as this number of elements.
constexpr int64_t kElementsPerFunction = 1 << 8;

template <typename R>
class PwluFunctions {
 public:
  // The parameters are those of the op: points, left_bound, right_bound, left_slope and right_slope.
  explicit PwluFunctions(at::TensorList parameters)
      : count(parameters[0].size(0)), num_intervals(int(parameters[0].size(1)) - 1) {
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i] = doubles(parameters[i]);
    tables_.resize(count * 2 * bins() + kLanePadding);
    functions_.resize(count);
    for_channels([&](int64_t c) { prepare(c); });
  }

  int bins() const { return num_intervals + 2; }
  const PwluFunction<R>& operator[](int64_t c) const { return functions_[c]; }

  // Builds the tables that blocks need.
  void prepare_blocks() {
    lanes_.resize(5 * padded());
    pairs_.resize(padded() * 2 * bins());
    for_channels([&](int64_t c) {
      const Line<R>& line = functions_[c].line;
      R* lane = lanes_.data() + c;
      for (R number : {line.left, line.right, line.length, line.middle, line.scale}) {
        *lane = number;
        lane += padded();
      }
      R* pair = pairs_.data() + c * 2 * bins();
      for (int i = 0; i < bins(); ++i) {
        pair[2 * i] = functions_[c].value[i];
        pair[2 * i + 1] = functions_[c].slope[i];
      }
    });
  }
  PwluBlock<R> block(int64_t channel, int channels) const {
    bool fits = true;
    for (int64_t c = channel; c < channel + channels; ++c) fits &= functions_[c].fits;
    const R* lane = lanes_.data() + channel;
    return {channels,
            fits,
            functions_.data() + channel,
            lane,
            lane + padded(),
            lane + 2 * padded(),
            lane + 3 * padded(),
            lane + 4 * padded(),
            pairs_.data() + channel * 2 * bins()};
  }

  // The gradients of the parameters from the sums over bins of all channels: [channels, 2, N + 2], amounts and
  // moments.
  std::vector<at::Tensor> gradients(double* sums, at::TensorList parameters) const {
    const int64_t num_points = num_intervals + 1, width = num_points + 4;
    std::vector<double> grads(count * width);
    for_channels([&](int64_t c) {
      double* amount = sums + c * 2 * bins();
      run_.finish(functions_[c], Moments{amount, amount + bins()}, grads.data() + c * width);
    });
    std::vector<at::Tensor> results{from_doubles(parameters[0], grads.data(), width)};
    for (int i = 1; i < 5; ++i) {
      results.push_back(from_doubles(parameters[i], grads.data() + num_points + i - 1, width));
    }
    return results;
  }

  const int64_t count;
  const int num_intervals;

 private:
  int64_t padded() const { return count + kLanePadding; }

  template <typename F>
  void for_channels(const F& run) const {
    for_indices(count, count * kElementsPerFunction, run);
  }

  void prepare(int64_t c) {
    const auto& [points, left_bound, right_bound, left_slope, right_slope] = parameters_;
    functions_[c].parameters = {points.data() + c * (num_intervals + 1),
                                left_bound[c],
                                right_bound[c],
                                left_slope[c],
                                right_slope[c],
                                num_intervals,
                                interval_length(left_bound[c], right_bound[c], num_intervals)};
    R* value = tables_.data() + c * 2 * bins();
    run_.prepare(functions_[c], value, value + bins());
  }

  const PwluDtype<R>& run_ = kernels().pwlu.of<R>();
  std::array<std::vector<double>, 5> parameters_;
  std::vector<R> tables_, lanes_, pairs_;
  std::vector<PwluFunction<R>> functions_;
};

}  // namespace
}  // namespace pwlu
