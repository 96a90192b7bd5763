// The ops of the pointwise activations, whatever computes them.
//
// A backend has
//   Tensor forward(Activation, x, rows)
//   Tensor backward(Activation, grad, x, rows, gradients), which gives that of x and fills in the others
// where rows are the parameters as [coefficients, channels], and gradients are theirs.
#pragma once

#include <torch/library.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "activations.h"
#include "tensors.h"

namespace pwlu {
namespace {

using ParameterRows = std::vector<Tensor>;

// A parameter is [channels], or [channels, coefficients], or in APL [coefficients, channels].
inline Tensor as_row(Activation activation, const Tensor& parameter) {
  if (parameter.dim() == 1) return parameter.unsqueeze(0);
  return activation == Activation::kApl ? parameter : parameter.t();
}

inline int64_t count_coefficients(const ParameterRows& rows) {
  int64_t count = 0;
  for (const Tensor& row : rows) count += row.size(0);
  TORCH_CHECK(count <= kMaxParameters, "pwlu_det: ", count, " parameters for each channel; at most ", kMaxParameters,
              " are possible");
  return count;
}

template <size_t>
using TensorAt = Tensor;

template <typename Backend, Activation kActivation, typename Indices>
struct PointwiseOp;

template <typename Backend, Activation kActivation, size_t... I>
struct PointwiseOp<Backend, kActivation, std::index_sequence<I...>> {
  static Tensor forward(const Tensor& x, const TensorAt<I>&... parameters) {
    return Backend::forward(kActivation, x, {as_row(kActivation, parameters)...});
  }

  static std::tuple<Tensor, TensorAt<I>...> backward(const Tensor& grad, const Tensor& x,
                                                     const TensorAt<I>&... parameters) {
    const ParameterRows all{at::empty(parameters.sizes(), parameters.options())...};
    const Tensor grad_x = Backend::backward(kActivation, grad, x, {as_row(kActivation, parameters)...},
                                            {as_row(kActivation, all[I])...});
    return {grad_x, all[I]...};
  }
};

template <typename Backend, Activation kActivation, size_t kParameters>
void add_pointwise_op(torch::Library& m, const std::string& name) {
  using Op = PointwiseOp<Backend, kActivation, std::make_index_sequence<kParameters>>;
  m.impl(name.c_str(), &Op::forward);
  m.impl((name + "_backward").c_str(), &Op::backward);
}

template <typename Backend>
void add_pointwise_ops(torch::Library& m) {
  add_pointwise_op<Backend, Activation::kPrelu, 1>(m, "prelu");
  add_pointwise_op<Backend, Activation::kSwish, 1>(m, "swish");
  add_pointwise_op<Backend, Activation::kAconB, 2>(m, "acon_b");
  add_pointwise_op<Backend, Activation::kAconC, 3>(m, "acon_c");
  add_pointwise_op<Backend, Activation::kMetaAconPixel, 2>(m, "meta_acon_pixel");
  add_pointwise_op<Backend, Activation::kApl, 2>(m, "apl");
  add_pointwise_op<Backend, Activation::kPau, 2>(m, "pau");
  add_pointwise_op<Backend, Activation::kSrelu, 4>(m, "srelu");
  add_pointwise_op<Backend, Activation::kMixture, 2>(m, "mixture");
  add_pointwise_op<Backend, Activation::kSlaf, 1>(m, "slaf");
}

}  // namespace
}  // namespace pwlu
