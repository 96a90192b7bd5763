// The functions of all channels, as tables in the kernels' arithmetic type.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <vector>

#include "../tensors.h"
#include "pwlu_kernels.h"

namespace pwlu {
namespace {

template <typename R>
class PwluFunctions {
 public:
  PwluFunctions(const at::Tensor& points, const at::Tensor& left_bound, const at::Tensor& right_bound,
                const at::Tensor& left_slope, const at::Tensor& right_slope)
      : count(points.size(0)), num_intervals(int(points.size(1)) - 1) {
    size_t i = 0;
    for (const at::Tensor& t : {points, left_bound, right_bound, left_slope, right_slope}) {
      kept_[i] = t.to(at::kDouble).contiguous();
      parameters_[i] = kept_[i].const_data_ptr<double>();
      ++i;
    }
    tables_.resize(count * 2 * bins() + kLanePadding);
    for (int64_t c = 0; c < count; ++c) functions_.push_back(make_function(c));
  }

  int bins() const { return num_intervals + 2; }
  const PwluFunction<R>& operator[](int64_t c) const { return functions_[c]; }

  // Builds the tables that blocks need.
  void prepare_blocks() {
    lanes_.resize(5 * padded());
    pairs_.resize(padded() * 2 * bins());
    for (int64_t c = 0; c < count; ++c) {
      const Line<R>& line = functions_[c].line;
      R* lane = lanes_.data() + c;
      for (R number : {line.left, line.right, line.length, line.middle, line.scale}) {
        *lane = number;
        lane += padded();
      }
      for (int i = 0; i < bins(); ++i) {
        pairs_[(c * bins() + i) * 2] = functions_[c].value[i];
        pairs_[(c * bins() + i) * 2 + 1] = functions_[c].slope[i];
      }
    }
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

  const int64_t count;
  const int num_intervals;

 private:
  int64_t padded() const { return count + kLanePadding; }

  PwluFunction<R> make_function(int64_t c) {
    const auto& [points, left_bound, right_bound, left_slope, right_slope] = parameters_;
    const Parameters<double> p{points + c * (num_intervals + 1),
                               left_bound[c],
                               right_bound[c],
                               left_slope[c],
                               right_slope[c],
                               num_intervals,
                               interval_length(left_bound[c], right_bound[c], num_intervals)};
    R* value = tables_.data() + c * 2 * bins();
    R* slope = value + bins();
    const Line<R> line = make_line<R>(p);
    bool fits = bounds_fit(p, line);
    for (int k = -1; k <= num_intervals; ++k) {
      fits &= slope_fits<R>(p, k);
      value[k + 1] = R(value_of(p, line, k));
      slope[k + 1] = R(slope_of(p, k));
    }
    return {p, line, value, slope, fits};
  }

  std::array<at::Tensor, 5> kept_;  // in double
  std::array<const double*, 5> parameters_;
  std::vector<R> tables_, lanes_, pairs_;
  std::vector<PwluFunction<R>> functions_;
};

// Writes the gradients of one channel in the order of the arguments: points (N + 1), then the other four.
template <typename R>
void finish_channel(const PwluFunction<R>& f, const Moments& moments, double* grads) {
  const auto with = [&](const auto& line) {
    const int num_points = f.parameters.num_intervals + 1;
    for (int j = 0; j < num_points; ++j) grads[j] = point_gradient(f.parameters, line, moments, j);
    other_gradients(f.parameters, line, moments, grads + num_points);
  };
  f.fits ? with(f.line) : with(make_line<double>(f.parameters));
}

// The gradients of the parameters, in the order of the arguments, from the sums over bins of all channels:
// [channels, 2, N + 2], amounts and moments.
template <typename R>
std::vector<at::Tensor> finish_gradients(const PwluFunctions<R>& functions, double* sums, at::TensorList parameters) {
  const int num_points = functions.num_intervals + 1, bins = functions.bins();
  const at::Tensor grads = at::empty({functions.count, num_points + 4}, at::kDouble);
  for (int64_t c = 0; c < functions.count; ++c) {
    double* amount = sums + c * 2 * bins;
    finish_channel(functions[c], Moments{amount, amount + bins}, grads[c].template data_ptr<double>());
  }
  std::vector<at::Tensor> results{gradient_of(parameters[0], grads.narrow(1, 0, num_points))};
  for (int i = 1; i < 5; ++i) results.push_back(gradient_of(parameters[i], grads.select(1, num_points + i - 1)));
  return results;
}

}  // namespace
}  // namespace pwlu
