// The PWLU ops on a GPU.
#include <torch/library.h>

#include <tuple>

#include "../signatures.h"
#include "glue.h"

namespace pwlu {
namespace {

// The parameters, of which the kernels see dense arrays in the dtype that they compute in.
class ParameterTensors {
 public:
  ParameterTensors(const Tensor& x, const Tensor& points, const Tensor& left_bound, const Tensor& right_bound,
                   const Tensor& left_slope, const Tensor& right_slope)
      : points_(dense_parameter(x, points)),
        left_bound_(dense_parameter(x, left_bound)),
        right_bound_(dense_parameter(x, right_bound)),
        left_slope_(dense_parameter(x, left_slope)),
        right_slope_(dense_parameter(x, right_slope)) {}

  int64_t count() const { return points_.size(0); }
  Functions functions() const {
    return {points_.const_data_ptr(),     left_bound_.const_data_ptr(),  right_bound_.const_data_ptr(),
            left_slope_.const_data_ptr(), right_slope_.const_data_ptr(), num_intervals()};
  }
  int num_intervals() const { return int(points_.size(1)) - 1; }

 private:
  Tensor points_, left_bound_, right_bound_, left_slope_, right_slope_;
};

// The memory format that x is worked on in: contiguous where the tables are too large for channels last.
at::MemoryFormat format_for(const Tensor& x, const ParameterTensors& parameters) {
  const bool any = parameters.count() == 1 || channels_last_fits(element_of(x), parameters.num_intervals());
  return any ? format_of(x) : at::MemoryFormat::Contiguous;
}

Tensor pwlu_cuda(const Tensor& x, const Tensor& points, const Tensor& left_bound, const Tensor& right_bound,
                 const Tensor& left_slope, const Tensor& right_slope) {
  const c10::cuda::CUDAGuard guard(x.device());
  if (x.numel() == 0) return at::empty_like(x);
  const ParameterTensors parameters(x, points, left_bound, right_bound, left_slope, right_slope);
  const auto format = format_for(x, parameters);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  check_launched(launch_forward(layout_of(dense, parameters.count(), format), element_of(x), parameters.functions(),
                                dense.const_data_ptr(), y.mutable_data_ptr(), current_stream()));
  return with_layout_of(x, dense, y);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients pwlu_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& points, const Tensor& left_bound,
                             const Tensor& right_bound, const Tensor& left_slope, const Tensor& right_slope,
                             std::array<bool, 2> output_mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto masked = [&](Gradients all) -> Gradients {
    const auto& [of_x, of_points, of_left_bound, of_right_bound, of_left_slope, of_right_slope] = all;
    const auto asked_for = [](bool asked, const Tensor& gradient) {
      return asked ? gradient : not_computed(gradient);
    };
    const auto [with_x, with_parameters] = output_mask;
    return {asked_for(with_x, of_x),
            asked_for(with_parameters, of_points),
            asked_for(with_parameters, of_left_bound),
            asked_for(with_parameters, of_right_bound),
            asked_for(with_parameters, of_left_slope),
            asked_for(with_parameters, of_right_slope)};
  };
  const auto wide = x.options().dtype(compute_dtype(x));
  if (x.numel() == 0) {
    return masked({at::empty_like(x), at::zeros_like(points), at::zeros_like(left_bound), at::zeros_like(right_bound),
                   at::zeros_like(left_slope), at::zeros_like(right_slope)});
  }
  const ParameterTensors parameters(x, points, left_bound, right_bound, left_slope, right_slope);
  const auto element = element_of(x);
  const auto format = format_for(x, parameters);
  const Tensor dense = x.contiguous(format), g = grad.contiguous(format), grad_x = at::empty_like(dense);
  const Layout layout = layout_of(dense, parameters.count(), format);
  const auto gradient = [&](const Tensor& p) { return at::empty(p.sizes(), wide); };
  const Tensor of_points = gradient(points), of_left_bound = gradient(left_bound),
               of_right_bound = gradient(right_bound), of_left_slope = gradient(left_slope),
               of_right_slope = gradient(right_slope);
  const Tensor workspace =
      at::empty({backward_workspace(layout, element, parameters.num_intervals())}, x.options().dtype(at::kDouble));
  check_launched(launch_backward(
      layout, element, parameters.functions(), g.const_data_ptr(), dense.const_data_ptr(), grad_x.mutable_data_ptr(),
      {of_points.mutable_data_ptr(), of_left_bound.mutable_data_ptr(), of_right_bound.mutable_data_ptr(),
       of_left_slope.mutable_data_ptr(), of_right_slope.mutable_data_ptr()},
      workspace.mutable_data_ptr<double>(), current_stream()));
  return masked({with_layout_of(x, dense, grad_x), of_points.to(points.scalar_type()),
                 of_left_bound.to(left_bound.scalar_type()), of_right_bound.to(right_bound.scalar_type()),
                 of_left_slope.to(left_slope.scalar_type()), of_right_slope.to(right_slope.scalar_type())});
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
  const Tensor workspace = at::empty({phase1_workspace(layout, element)}, x.options().dtype(at::kDouble));
  check_launched(launch_phase1(layout, element, dense.const_data_ptr(), y.mutable_data_ptr(), mean.mutable_data_ptr(),
                               deviation.mutable_data_ptr(), workspace.mutable_data_ptr<double>(), current_stream()));
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
