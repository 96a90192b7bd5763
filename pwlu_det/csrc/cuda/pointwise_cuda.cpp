// The ops of the pointwise activations on a GPU.
#include "../pointwise_ops.h"
#include "glue.h"
#include "pointwise.h"

namespace pwlu {
namespace {

// The coefficients, whose memory data(row) gives.
template <typename C, typename Data>
C coefficients_of(const ParameterRows& rows, const Data& data) {
  C all{};
  for (const Tensor& row : rows) {
    const int64_t step = row.stride(0) * row.element_size();
    for (int64_t k = 0; k < row.size(0); ++k) all.rows[all.size++] = {data(row) + k * step, row.stride(1)};
  }
  return all;
}

PointwiseParameters readable(const ParameterRows& rows) {
  return coefficients_of<PointwiseParameters>(
      rows, [](const Tensor& row) { return static_cast<const char*>(row.const_data_ptr()); });
}

PointwiseGradients writable(const ParameterRows& rows) {
  return coefficients_of<PointwiseGradients>(
      rows, [](const Tensor& row) { return static_cast<char*>(row.mutable_data_ptr()); });
}

// The parameters in the dtype that x is computed in.
ParameterRows converted(const Tensor& x, const ParameterRows& rows) {
  ParameterRows all;
  for (const Tensor& row : rows) all.push_back(as_computed(x, row));
  return all;
}

struct Cuda {
  static Tensor forward(Activation activation, const Tensor& x, const ParameterRows& parameters) {
    const c10::cuda::CUDAGuard guard(x.device());
    const ParameterRows rows = converted(x, parameters);
    if (x.numel() == 0) return at::empty_like(x);
    const auto format = format_of(x);
    const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
    check_launched(launch_pointwise(activation, layout_of(dense, rows[0].size(1), format), element_of(x),
                                    readable(rows), dense.const_data_ptr(), y.mutable_data_ptr(), current_stream()));
    return with_layout_of(x, dense, y);
  }

  static Tensor backward(Activation activation, const Tensor& grad, const Tensor& x, const ParameterRows& parameters,
                         bool /*with_x*/, const ParameterRows& asked_for) {
    const c10::cuda::CUDAGuard guard(x.device());
    const ParameterRows rows = converted(x, parameters);
    if (x.numel() == 0) {
      for (const Tensor& gradient : asked_for) gradient.zero_();
      return at::empty_like(x);
    }
    ParameterRows gradients = asked_for;
    if (asked_for.empty()) {
      for (const Tensor& row : parameters) gradients.push_back(at::empty_like(row));
    }
    ParameterRows results;  // of the dtype that is computed in; in place where that is the parameter's
    for (size_t i = 0; i < rows.size(); ++i) {
      const bool same = gradients[i].scalar_type() == compute_dtype(x);
      results.push_back(same ? gradients[i] : at::empty_like(rows[i]));
    }
    const auto format = format_of(x);
    const Tensor dense = x.contiguous(format), g = grad.contiguous(format), grad_x = at::empty_like(dense);
    const Layout layout = layout_of(dense, rows[0].size(1), format);
    const auto element = element_of(x);
    const auto coefficients = readable(rows);
    const Tensor workspace =
        at::empty({pointwise_workspace(layout, element, coefficients.size)}, x.options().dtype(at::kDouble));
    check_launched(launch_pointwise_backward(activation, layout, element, coefficients, g.const_data_ptr(),
                                             dense.const_data_ptr(), grad_x.mutable_data_ptr(), writable(results),
                                             workspace.mutable_data_ptr<double>(), current_stream()));
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!results[i].is_same(gradients[i])) gradients[i].copy_(results[i]);
    }
    return with_layout_of(x, dense, grad_x);
  }
};

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_IMPL(pwlu_det, CUDA, m) { pwlu::add_pointwise_ops<pwlu::Cuda>(m); }
