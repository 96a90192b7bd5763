// The ops of PWLU on CUDA.
#include <torch/library.h>

#include <array>
#include <tuple>

#include "../signatures.h"
#include "pwlu_tensors.h"

namespace pwlu {
namespace {

Tensor pwlu_cuda(const Tensor& x, const Tensor& points, const Tensor& left_bound, const Tensor& right_bound,
                 const Tensor& left_slope, const Tensor& right_slope) {
  const c10::cuda::CUDAGuard guard(x.device());
  if (x.numel() == 0) return at::empty_like(x);
  const ParameterTensors given{points, left_bound, right_bound, left_slope, right_slope};
  const ParameterTensors parameters = given.prepared_for(x);
  const auto format = format_for(x, parameters);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  check_launched(launch_pwlu(layout_of(dense, parameters.count(), format), element_of(x), parameters.read(),
                             dense.const_data_ptr(), y.mutable_data_ptr(), current_stream()));
  return with_layout_of(x, dense, y);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients pwlu_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& points, const Tensor& left_bound,
                             const Tensor& right_bound, const Tensor& left_slope, const Tensor& right_slope,
                             std::array<bool, 2> output_mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto [with_x, with_parameters] = output_mask;
  const ParameterTensors given{points, left_bound, right_bound, left_slope, right_slope};
  const ParameterTensors parameters = given.prepared_for(x);
  const auto format = format_for(x, parameters);
  const Tensor dense = x.contiguous(format), grad_x = with_x ? at::empty_like(dense) : Tensor();
  const bool empty = x.numel() == 0;
  const ParameterTensors gradients = parameters.map([&, wanted = with_parameters](const Tensor& parameter) {
    return !wanted ? Tensor() : empty ? at::zeros_like(parameter) : at::empty_like(parameter);
  });
  if (!empty && (with_x || with_parameters)) {
    const Tensor g = grad.contiguous(format);
    const auto element = element_of(x);
    const Layout layout = layout_of(dense, parameters.count(), format);
    const Tensor workspace =
        make_workspace(x, with_parameters ? pwlu_backward_workspace(layout, element, parameters.num_intervals()) : 0);
    const PwluGradients places = gradients.write();
    check_launched(launch_pwlu_backward(
        layout, element, parameters.read(), g.const_data_ptr(), dense.const_data_ptr(), data_or_null(grad_x),
        with_parameters ? &places : nullptr, data_or_null<double>(workspace), current_stream()));
  }
  const auto result = [](const Tensor& parameter, const Tensor& gradient) {
    return gradient.defined() ? gradient.to(parameter.scalar_type()) : not_computed(parameter);
  };
  return {with_layout_of(x, dense, grad_x),         result(points, gradients.points),
          result(left_bound, gradients.left_bound), result(right_bound, gradients.right_bound),
          result(left_slope, gradients.left_slope), result(right_slope, gradients.right_slope)};
}

std::tuple<Tensor, Tensor, Tensor> pwlu_phase1_cuda(const Tensor& x, const Tensor& points, const Tensor&,
                                                    const Tensor&, const Tensor&, const Tensor&) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t count = points.size(0);
  const auto wide = x.options().dtype(compute_dtype(x));
  if (x.numel() == 0) return {at::empty_like(x), at::zeros({count}, wide), at::zeros({count}, wide)};
  const auto element = element_of(x);
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  const Layout layout = layout_of(dense, count, format);
  const Tensor mean = at::empty({count}, wide), deviation = at::empty({count}, wide);
  const Tensor workspace = make_workspace(x, pwlu_phase1_workspace(layout, element));
  check_launched(launch_pwlu_phase1(layout, element, dense.const_data_ptr(), y.mutable_data_ptr(),
                                    mean.mutable_data_ptr(), deviation.mutable_data_ptr(),
                                    workspace.mutable_data_ptr<double>(), current_stream()));
  return {with_layout_of(x, dense, y), mean, deviation};
}

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_IMPL(pwlu_det, CUDA, m) {
  using namespace pwlu;
  add_op<kPwlu, &pwlu_cuda>(m);
  add_op<kPwluBackward, &pwlu_backward_cuda>(m);
  add_op<kPwluPhase1, &pwlu_phase1_cuda>(m);
}
