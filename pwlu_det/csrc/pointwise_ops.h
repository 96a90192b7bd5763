// The ops of the pointwise activations, for any backend.
//
// A backend has
//   Tensor forward(Activation, x, rows)
//   Tensor backward(Activation, grad, x, rows, with_x, gradients), which returns the gradient of x if with_x is true,
//     and writes those of the rows to `gradients`, which is empty if they are not requested
//   add<signature, function>(library), which registers an op
// where rows are the parameters as [coefficients, channels]. All arguments have already been checked.
#pragma once

#include <torch/library.h>

#include <array>
#include <iterator>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "pointwise_list.h"
#include "pointwise_math.h"
#include "tensors.h"

namespace pwlu {
namespace {

using ParameterRows = std::vector<Tensor>;

// A row of the list.
template <Activation>
struct PointwiseRow;

#define PWLU_ROW(op, F, ...)                                                                     \
  template <>                                                                                    \
  struct PointwiseRow<Activation::op> {                                                          \
    using Formula = F;                                                                           \
    static constexpr const char* kParameters[] = {__VA_ARGS__};                                  \
    static constexpr Signature kForward{#op, {"x: B C *", __VA_ARGS__}};                         \
    static constexpr Signature kBackward{#op "_backward", {"grad: x", "x: B C *", __VA_ARGS__}}; \
  };
PWLU_FORALL_POINTWISE(PWLU_ROW)
#undef PWLU_ROW

// Each parameter as [coefficients, channels].
template <typename Row>
ParameterRows rows_of(ParameterRows parameters) {
  int64_t size = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    Tensor& row = parameters[i];
    // [channels], [coefficients, channels], or [channels, coefficients]
    row = row.dim() == 1 ? row.unsqueeze(0) : Argument(Row::kParameters[i], row).shape[0] == 'S' ? row : row.t();
    size += row.size(0);
  }
  TORCH_CHECK_VALUE(size <= kMaxParameters, Row::kForward.op, ": there are ", size,
                    " parameters for each channel; at most ", kMaxParameters, " are allowed");
  constexpr int kSize = Row::Formula::kSize;
  TORCH_INTERNAL_ASSERT(kSize == 0 || size == kSize, Row::kForward.op, " has ", size,
                        " parameters in pointwise_list.h, and its formula has ", kSize);
  return parameters;
}

template <size_t>
using TensorAt = Tensor;

template <typename Backend, Activation kActivation, typename Indices>
struct PointwiseOp;

template <typename Backend, Activation kActivation, size_t... I>
struct PointwiseOp<Backend, kActivation, std::index_sequence<I...>> {
  using Row = PointwiseRow<kActivation>;

  static Tensor forward(const Tensor& x, const TensorAt<I>&... parameters) {
    return Backend::forward(kActivation, x, rows_of<Row>({parameters...}));
  }

  static std::tuple<Tensor, TensorAt<I>...> backward(const Tensor& grad, const Tensor& x,
                                                     const TensorAt<I>&... parameters,
                                                     std::array<bool, 2> output_mask) {
    const auto [with_x, with_parameters] = output_mask;
    const std::array<Tensor, sizeof...(I)> all{with_parameters ? at::empty(parameters.sizes(), parameters.options())
                                                               : not_computed(parameters)...};
    const ParameterRows gradients = with_parameters ? rows_of<Row>({all[I]...}) : ParameterRows();
    Tensor grad_x;
    if (with_x || with_parameters) {
      grad_x = Backend::backward(kActivation, grad, x, rows_of<Row>({parameters...}), with_x, gradients);
    }
    return {with_x ? grad_x : not_computed(x), all[I]...};
  }
};

template <typename Backend, Activation kActivation>
void add_pointwise_op(torch::Library& m) {
  using Row = PointwiseRow<kActivation>;
  using Op = PointwiseOp<Backend, kActivation, std::make_index_sequence<std::size(Row::kParameters)>>;
  Backend::template add<Row::kForward, &Op::forward>(m);
  Backend::template add<Row::kBackward, &Op::backward>(m);
}

template <typename Backend>
void add_pointwise_ops(torch::Library& m) {
#define PWLU_ADD(op, ...) add_pointwise_op<Backend, Activation::op>(m);
  PWLU_FORALL_POINTWISE(PWLU_ADD)
#undef PWLU_ADD
}

}  // namespace
}  // namespace pwlu
