// The ops of the pointwise activations on CUDA.
#include "pointwise_tensors.h"

namespace pwlu {
namespace {

struct Cuda {
  template <const Signature& kSignature, auto kFunction>
  static void add(torch::Library& m) {
    add_op<kSignature, kFunction>(m);
  }

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
                         bool with_x, const ParameterRows& gradients) {
    const c10::cuda::CUDAGuard guard(x.device());
    const auto format = format_of(x);
    const Tensor dense = x.contiguous(format), grad_x = with_x ? at::empty_like(dense) : Tensor();
    if (x.numel() == 0) {
      for (const Tensor& gradient : gradients) gradient.zero_();
      return with_layout_of(x, dense, grad_x);
    }
    ParameterRows results;  // in the computation dtype; the gradient itself if it has that dtype
    for (const Tensor& gradient : gradients) {
      const bool same = gradient.scalar_type() == compute_dtype(x);
      results.push_back(same ? gradient : at::empty_like(gradient, gradient.options().dtype(compute_dtype(x))));
    }
    const Tensor g = grad.contiguous(format);
    const ParameterRows rows = converted(x, parameters);
    const Layout layout = layout_of(dense, rows[0].size(1), format);
    const auto element = element_of(x);
    const auto coefficients = readable(rows);
    const auto places = writable(results);
    const Tensor workspace = make_workspace(x, pointwise_workspace(layout, element, places.size));
    check_launched(launch_pointwise_backward(
        activation, layout, element, coefficients, g.const_data_ptr(), dense.const_data_ptr(), data_or_null(grad_x),
        gradients.empty() ? nullptr : &places, data_or_null<double>(workspace), current_stream()));
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].is_same(gradients[i])) gradients[i].copy_(results[i]);
    }
    return with_layout_of(x, dense, grad_x);
  }
};

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_IMPL(pwlu_det, CUDA, m) { pwlu::add_pointwise_ops<pwlu::Cuda>(m); }
