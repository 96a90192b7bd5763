// The activations that follow a norm, on tensors.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "../norm_arguments.h"
#include "norm_launch.h"
#include "pointwise_tensors.h"
#include "pwlu_tensors.h"

namespace pwlu {
namespace {

// What an activation is applied to.
struct NormCall {
  Layout layout;
  Element element;
  NormSource source;
};

// An activation; see cpu/norm_stages.h. The kernels have a function per channel. If all channels share one, its
// parameters are repeated, and the gradients of all channels are added up in double.
class Stage {
 public:
  virtual ~Stage() = default;
  // Whether x can be processed in channels last.
  virtual bool channels_last_fits(const Tensor&) const { return true; }
  virtual int forward(const NormCall& call, void* y) const = 0;
  // dz and norm_sums may be null.
  virtual int backward(const NormCall& call, const void* grad, void* dz, double* norm_sums) = 0;
  // The gradients of the parameters, after backward; zeros without it.
  virtual std::vector<Tensor> gradients() const = 0;
};

// ReLU, also in place of PWLU in phase I, whose parameters have gradients of zero.
class ReluStage : public Stage {
 public:
  explicit ReluStage(at::TensorList parameters) : parameters_(parameters.vec()) {}
  int forward(const NormCall& call, void* y) const override {
    return launch_norm_relu(call.layout, call.element, call.source, y, current_stream());
  }
  int backward(const NormCall& call, const void* grad, void* dz, double* norm_sums) override {
    if (!dz) return 0;
    return launch_norm_relu_backward(call.layout, call.element, call.source, grad, dz, norm_sums, current_stream());
  }
  std::vector<Tensor> gradients() const override {
    std::vector<Tensor> zeros;
    for (const Tensor& parameter : parameters_) zeros.push_back(at::zeros_like(parameter));
    return zeros;
  }

 private:
  const std::vector<Tensor> parameters_;
};

class PwluStage : public Stage {
 public:
  PwluStage(const Tensor& x, at::TensorList p)
      : x_(x),
        given_{p[0], p[1], p[2], p[3], p[4]},
        parameters_(given_.map([&](const Tensor& parameter) {
          auto sizes = parameter.sizes().vec();
          sizes[0] = x.size(1);
          return dense_parameter(x, parameter.expand(sizes));
        })),
        gradients_(parameters_.map([](const Tensor& parameter) { return at::zeros_like(parameter); })) {}
  bool channels_last_fits(const Tensor& x) const override {
    return pwlu_channels_last_fits(element_of(x), parameters_.num_intervals());
  }
  int forward(const NormCall& call, void* y) const override {
    return launch_norm_pwlu(call.layout, call.element, call.source, parameters_.read(), y, current_stream());
  }
  int backward(const NormCall& call, const void* grad, void* dz, double* norm_sums) override {
    const int64_t size = pwlu_backward_workspace(call.layout, call.element, parameters_.num_intervals());
    const Tensor workspace = make_workspace(x_, size);
    return launch_norm_pwlu_backward(call.layout, call.element, call.source, parameters_.read(), grad, dz,
                                     gradients_.write(), data_or_null<double>(workspace), norm_sums,
                                     current_stream());
  }
  std::vector<Tensor> gradients() const override {
    const auto result = [](const Tensor& parameter, const Tensor& own) {
      const bool shared = own.size(0) != parameter.size(0);
      return gradient_of(parameter, shared ? own.sum(0, true, at::kDouble) : own);
    };
    return {result(given_.points, gradients_.points), result(given_.left_bound, gradients_.left_bound),
            result(given_.right_bound, gradients_.right_bound), result(given_.left_slope, gradients_.left_slope),
            result(given_.right_slope, gradients_.right_slope)};
  }

 private:
  const Tensor x_;
  const ParameterTensors given_, parameters_, gradients_;
};

class PointwiseStage : public Stage {
 public:
  using RowsOf = ParameterRows (*)(ParameterRows);

  PointwiseStage(Activation activation, RowsOf rows_of, const Tensor& x, at::TensorList parameters)
      : activation_(activation), rows_of_(rows_of), x_(x), parameters_(parameters.vec()) {
    for (const Tensor& row : converted(x, rows_of(parameters_))) {
      rows_.push_back(row.expand({row.size(0), x.size(1)}));
      gradients_.push_back(at::zeros(rows_.back().sizes(), row.options()));
    }
  }
  int forward(const NormCall& call, void* y) const override {
    return launch_norm_pointwise(activation_, call.layout, call.element, call.source, readable(rows_), y,
                                 current_stream());
  }
  int backward(const NormCall& call, const void* grad, void* dz, double* norm_sums) override {
    const auto coefficients = readable(rows_);
    const Tensor workspace = make_workspace(x_, pointwise_workspace(call.layout, call.element, coefficients.size));
    return launch_norm_pointwise_backward(activation_, call.layout, call.element, call.source, coefficients, grad, dz,
                                          writable(gradients_), data_or_null<double>(workspace), norm_sums,
                                          current_stream());
  }
  std::vector<Tensor> gradients() const override {
    std::vector<Tensor> results;
    for (const Tensor& parameter : parameters_) results.push_back(at::empty(parameter.sizes(), parameter.options()));
    const ParameterRows places = rows_of_(results);
    for (size_t i = 0; i < places.size(); ++i) {
      const bool shared = gradients_[i].size(1) != places[i].size(1);
      places[i].copy_(shared ? gradients_[i].sum(1, true, at::kDouble) : gradients_[i]);
    }
    return results;
  }

 private:
  const Activation activation_;
  const RowsOf rows_of_;
  const Tensor x_;
  const std::vector<Tensor> parameters_;
  ParameterRows rows_, gradients_;
};

inline std::unique_ptr<Stage> make_stage(std::string_view activation, const Tensor& x, at::TensorList parameters) {
  if (activation == "relu" || activation == "pwlu_phase1") return std::make_unique<ReluStage>(parameters);
  if (activation == "pwlu") return std::make_unique<PwluStage>(x, parameters);
#define PWLU_STAGE(op, ...)                                                                                         \
  if (activation == #op) {                                                                                          \
    return std::make_unique<PointwiseStage>(Activation::op, &rows_of<PointwiseRow<Activation::op>>, x, parameters); \
  }
  PWLU_FORALL_POINTWISE(PWLU_STAGE)
#undef PWLU_STAGE
  TORCH_INTERNAL_ASSERT(false, "the activation has been checked");
}

}  // namespace
}  // namespace pwlu
