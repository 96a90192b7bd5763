// The arguments of norm_activation, and their checks; ops/norm_activation.py has the same checks for plain torch.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "checks.h"
#include "pointwise_ops.h"
#include "signatures.h"

namespace pwlu {
namespace {

// A norm's tensors: weight and bias, or weight, bias, mean and variance. `added` is empty, or has the added tensor,
// and then those of its own norm if it has one.
struct NormArguments {
  const char* op;
  const Tensor& x;
  at::TensorList norm;
  double eps;
  at::TensorList added;
  double added_eps;
  std::string_view activation;
  at::TensorList parameters;
};

// The names and shapes of an activation's parameters.
inline std::vector<const char*> parameters_of(const char* op, std::string_view activation) {
  const auto from = [](const char* const* first, size_t count) {
    return std::vector<const char*>(first, first + count);
  };
  if (activation == "relu") return {};
  if (activation == "pwlu" || activation == "pwlu_phase1") return from(kPwlu.arguments + 1, 5);
#define PWLU_PARAMETERS(op, ...)                                \
  if (activation == #op) {                                      \
    using Row = PointwiseRow<Activation::op>;                   \
    return from(Row::kParameters, std::size(Row::kParameters)); \
  }
  PWLU_FORALL_POINTWISE(PWLU_PARAMETERS)
#undef PWLU_PARAMETERS
  TORCH_CHECK_VALUE(false, op, ": there is no activation '", std::string(activation), "'");
}

inline void check_count(const char* op, const char* what, size_t count, bool fits, const char* allowed) {
  TORCH_CHECK_VALUE(fits, op, ": ", what, " has ", count, " tensors; ", allowed);
}

// Checks the arguments. If `statistics` is true, the norms must have a mean and a variance. `grad` may be null.
inline void check_norm(const NormArguments& a, const Tensor* grad, bool statistics) {
  static constexpr const char* kNorm[] = {"weight: C", "bias: C", "mean: C", "var: C"};
  static constexpr const char* kAdded[] = {"added: x", "added_weight: C", "added_bias: C", "added_mean: C",
                                           "added_var: C"};
  const size_t norm = a.norm.size(), added = a.added.size();
  if (statistics) check_count(a.op, "norm", norm, norm == 4, "weight, bias, mean and var are needed");
  check_count(a.op, "norm", norm, norm == 2 || norm == 4,
              "weight and bias, or weight, bias, mean and var are needed");
  check_count(a.op, "added", added, added <= 1 || added == norm + 1,
              "it may have a tensor, and then the same tensors of its norm as norm has");
  check_eps(a.op, a.eps);
  check_eps(a.op, a.added_eps, "added_eps");
  const auto parameters = parameters_of(a.op, a.activation);
  TORCH_CHECK_VALUE(a.parameters.size() == parameters.size(), a.op, ": ", std::string(a.activation), " has ",
                    parameters.size(), " parameters, not ", a.parameters.size());
  std::vector<Argument> arguments{{"x: B C *", a.x}};
  if (grad) arguments.emplace_back("grad: x", *grad);
  for (size_t i = 0; i < norm; ++i) arguments.emplace_back(kNorm[i], a.norm[i]);
  for (size_t i = 0; i < added; ++i) arguments.emplace_back(kAdded[i], a.added[i]);
  for (size_t i = 0; i < parameters.size(); ++i) arguments.emplace_back(parameters[i], a.parameters[i]);
  check_tensors(a.op, arguments);
}

}  // namespace
}  // namespace pwlu
