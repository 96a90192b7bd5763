// Activations as a stage between two buffers in the L1 cache, which their own kernels run on.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string_view>
#include <vector>

#include "dispatch.h"
#include "pointwise_table.h"
#include "pwlu_functions.h"

namespace pwlu {
namespace {

// Adjacent channels: one, or (channels last) several, at most kBlockChannels.
struct NormGroup {
  int64_t index, channel;
  int channels;
};

// Buffers hold `rows` rows of the channels of a group.
template <typename R>
class Stage {
 public:
  const int64_t functions, width;  // C or 1, and the number of sums for the gradients of each

  Stage(int64_t functions, int64_t width) : functions(functions), width(width) {}
  virtual ~Stage() = default;
  virtual void forward(const R* z, R* y, int64_t rows, const NormGroup& group) const = 0;
  // Adds to sums, [channels, width], or [width] for one function. Either dz or sums may be null.
  virtual void backward(const R* grad, const R* z, R* dz, int64_t rows, const NormGroup& group,
                        double* sums) const = 0;
  // The gradients of the parameters from the sums, [functions, width].
  virtual std::vector<Tensor> gradients(double* sums) const = 0;
};

// ReLU, also in place of PWLU in phase I, whose parameters have gradients of zero.
template <typename R>
class ReluStage : public Stage<R> {
 public:
  ReluStage(int64_t channels, at::TensorList parameters) : Stage<R>(channels, 0), parameters_(parameters.vec()) {}
  void forward(const R* z, R* y, int64_t rows, const NormGroup& group) const override {
    kernels().norm->of<R>().relu(z, y, rows * group.channels);
  }
  void backward(const R* grad, const R* z, R* dz, int64_t rows, const NormGroup& group, double*) const override {
    if (dz) kernels().norm->of<R>().relu_backward(grad, z, dz, rows * group.channels);
  }
  std::vector<Tensor> gradients(double*) const override {
    std::vector<Tensor> results;
    for (const Tensor& parameter : parameters_) results.push_back(at::zeros_like(parameter));
    return results;
  }

 private:
  const std::vector<Tensor> parameters_;
};

template <typename R>
class PwluStage : public Stage<R> {
 public:
  PwluStage(at::TensorList parameters, bool channels_last)
      : Stage<R>(parameters[0].size(0), 2 * (parameters[0].size(1) + 1)),
        parameters_(parameters.vec()),
        functions_(parameters) {
    if (channels_last && this->functions > 1) functions_.prepare_blocks();
  }
  void forward(const R* z, R* y, int64_t rows, const NormGroup& group) const override {
    if (is_row(group)) return run_.forward(z, y, rows * group.channels, function(group));
    run_.forward_block(z, y, rows, group.channels, functions_.block(group.channel, group.channels));
  }
  void backward(const R* grad, const R* z, R* dz, int64_t rows, const NormGroup& group, double* sums) const override {
    Moments of_channels[kBlockChannels];
    const int count = is_row(group) ? 1 : group.channels;
    for (int c = 0; c < count && sums; ++c) {
      double* own = sums + c * this->width;
      of_channels[c] = {own, own + this->width / 2};
    }
    const Moments* moments = sums ? of_channels : nullptr;
    if (is_row(group)) return run_.backward(grad, z, dz, rows * group.channels, function(group), moments);
    run_.backward_block(grad, z, dz, rows, group.channels, functions_.block(group.channel, group.channels), moments);
  }
  std::vector<Tensor> gradients(double* sums) const override { return functions_.gradients(sums, parameters_); }

 private:
  bool is_row(const NormGroup& group) const { return group.channels == 1 || this->functions == 1; }
  const PwluFunction<R>& function(const NormGroup& group) const {
    return functions_[this->functions == 1 ? 0 : group.channel];
  }

  const PwluDtype<R>& run_ = kernels().pwlu.of<R>();
  const std::vector<Tensor> parameters_;
  PwluFunctions<R> functions_;
};

template <typename R>
class PointwiseStage : public Stage<R> {
 public:
  using RowsOf = ParameterRows (*)(ParameterRows);

  PointwiseStage(Activation activation, RowsOf rows_of, at::TensorList parameters)
      : PointwiseStage(activation, rows_of, parameters, ParameterTable(rows_of(parameters.vec()))) {}
  void forward(const R* z, R* y, int64_t rows, const NormGroup& group) const override {
    const auto [n, stride, channel, channels] = view(rows, group);
    run_.forward(z, y, n, stride, table_.of(channel, channels));
  }
  void backward(const R* grad, const R* z, R* dz, int64_t rows, const NormGroup& group, double* sums) const override {
    const auto [n, stride, channel, channels] = view(rows, group);
    run_.backward(grad, z, dz, n, stride, table_.of(channel, channels), sums);
  }
  std::vector<Tensor> gradients(double* sums) const override {
    std::vector<Tensor> results;
    for (const Tensor& parameter : parameters_) results.push_back(at::empty(parameter.sizes(), parameter.options()));
    const Tensor totals = at::from_blob(sums, {this->functions, this->width}, at::kDouble).t();
    int64_t first = 0;
    for (const Tensor& gradient : rows_of_(results)) {
      gradient.copy_(totals.narrow(0, first, gradient.size(0)));
      first += gradient.size(0);
    }
    return results;
  }

 private:
  PointwiseStage(Activation activation, RowsOf rows_of, at::TensorList parameters, ParameterTable table)
      : Stage<R>(table.channels(), table.size()),
        run_(kernels().pointwise->of(activation).template of<R>()),
        rows_of_(rows_of),
        parameters_(parameters.vec()),
        table_(std::move(table)) {}

  struct View {
    int64_t rows, stride, channel;
    int channels;
  };
  View view(int64_t rows, const NormGroup& group) const {
    if (this->functions == 1) return {rows * group.channels, 1, 0, 1};
    return {rows, group.channels, group.channel, group.channels};
  }

  const PointwiseDtype<R>& run_;
  const RowsOf rows_of_;
  const std::vector<Tensor> parameters_;
  const ParameterTable table_;
};

template <typename R>
std::unique_ptr<Stage<R>> make_stage(std::string_view activation, at::TensorList parameters, int64_t channels,
                                     bool channels_last) {
  if (activation == "relu" || activation == "pwlu_phase1") {
    return std::make_unique<ReluStage<R>>(channels, parameters);
  }
  if (activation == "pwlu") return std::make_unique<PwluStage<R>>(parameters, channels_last);
#define PWLU_STAGE(op, ...)                                                                                         \
  if (activation == #op) {                                                                                          \
    return std::make_unique<PointwiseStage<R>>(Activation::op, &rows_of<PointwiseRow<Activation::op>>, parameters); \
  }
  PWLU_FORALL_POINTWISE(PWLU_STAGE)
#undef PWLU_STAGE
  TORCH_INTERNAL_ASSERT(false, "the activation has been checked");
}

}  // namespace
}  // namespace pwlu
