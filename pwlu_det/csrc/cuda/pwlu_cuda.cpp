// The CUDA side of the ops: from tensors to the launchers. Nothing here waits for the GPU.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "launch.h"

namespace pwlu {
namespace {

using at::Tensor;

Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Element::kFloat;
    case at::kDouble:
      return Element::kDouble;
    case at::kHalf:
      return Element::kHalf;
    case at::kBFloat16:
      return Element::kBFloat16;
    default:
      TORCH_CHECK(false, "pwlu: dtype ", x.scalar_type(), " is not supported");
  }
}

at::ScalarType wide_dtype(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The memory format that the kernels work in: that of x where it is dense, else contiguous.
at::MemoryFormat format_of(const Tensor& x, bool allow_channels_last) {
  if (x.is_contiguous() || !allow_channels_last) return at::MemoryFormat::Contiguous;
  if (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  if (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)) return at::MemoryFormat::ChannelsLast3d;
  return at::MemoryFormat::Contiguous;
}

Layout layout_of(const Tensor& x, int64_t functions, at::MemoryFormat format) {
  if (functions == 1) return {1, 1, x.numel(), false};  // one row
  const int64_t inner = x.numel() / (x.size(0) * x.size(1));
  return {x.size(0), x.size(1), inner, inner == 1 || format != at::MemoryFormat::Contiguous};
}

// The parameters, of which the kernels see dense arrays in the dtype that they compute in.
class ParameterTensors {
 public:
  ParameterTensors(const Tensor& x, const Tensor& points, const Tensor& left_bound, const Tensor& right_bound,
                   const Tensor& left_slope, const Tensor& right_slope)
      : points_(dense(x, points)),
        left_bound_(dense(x, left_bound)),
        right_bound_(dense(x, right_bound)),
        left_slope_(dense(x, left_slope)),
        right_slope_(dense(x, right_slope)) {}

  int64_t count() const { return points_.size(0); }
  Functions functions() const {
    return {points_.const_data_ptr(),     left_bound_.const_data_ptr(),  right_bound_.const_data_ptr(),
            left_slope_.const_data_ptr(), right_slope_.const_data_ptr(), num_intervals()};
  }
  int num_intervals() const { return int(points_.size(1)) - 1; }

 private:
  static Tensor dense(const Tensor& x, const Tensor& parameter) {
    TORCH_CHECK(parameter.device() == x.device(), "pwlu: x is on ", x.device(), " and a parameter on ",
                parameter.device());
    return parameter.to(wide_dtype(x)).contiguous();
  }
  Tensor points_, left_bound_, right_bound_, left_slope_, right_slope_;
};

// A tensor like x, as the ops return it: x's own strides where it is dense.
Tensor with_layout_of(const Tensor& x, const Tensor& dense, const Tensor& result) {
  return x.is_same(dense) ? result : at::empty_like(x).copy_(result);
}

void check_launched(int status) { TORCH_CHECK(status == 0, "pwlu: a CUDA kernel did not start: cudaError ", status); }

void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

Tensor pwlu_cuda(const Tensor& x, const Tensor& points, const Tensor& left_bound, const Tensor& right_bound,
                 const Tensor& left_slope, const Tensor& right_slope) {
  const c10::cuda::CUDAGuard guard(x.device());
  if (x.numel() == 0) return at::empty_like(x);
  const ParameterTensors parameters(x, points, left_bound, right_bound, left_slope, right_slope);
  const auto element = element_of(x);
  const bool channels_last = parameters.count() == 1 || channels_last_fits(element, parameters.num_intervals());
  const auto format = format_of(x, channels_last);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  check_launched(launch_forward(layout_of(dense, parameters.count(), format), element, parameters.functions(),
                                dense.const_data_ptr(), y.mutable_data_ptr(), current_stream()));
  return with_layout_of(x, dense, y);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients pwlu_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& points, const Tensor& left_bound,
                             const Tensor& right_bound, const Tensor& left_slope, const Tensor& right_slope) {
  const c10::cuda::CUDAGuard guard(x.device());
  TORCH_CHECK(grad.device() == x.device() && grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
              "pwlu_backward: grad and x differ in device, shape or dtype");
  const auto wide = x.options().dtype(wide_dtype(x));
  if (x.numel() == 0) {
    return {at::empty_like(x),           at::zeros_like(points),     at::zeros_like(left_bound),
            at::zeros_like(right_bound), at::zeros_like(left_slope), at::zeros_like(right_slope)};
  }
  const ParameterTensors parameters(x, points, left_bound, right_bound, left_slope, right_slope);
  const auto element = element_of(x);
  const int n = parameters.num_intervals();
  const bool channels_last = parameters.count() == 1 || channels_last_fits(element, n);
  const auto format = format_of(x, channels_last);
  const Tensor dense = x.contiguous(format), g = grad.contiguous(format), grad_x = at::empty_like(dense);
  const Layout layout = layout_of(dense, parameters.count(), format);
  const auto gradient = [&](const Tensor& p) { return at::empty(p.sizes(), wide); };
  const Tensor of_points = gradient(points), of_left_bound = gradient(left_bound),
               of_right_bound = gradient(right_bound), of_left_slope = gradient(left_slope),
               of_right_slope = gradient(right_slope);
  const Tensor workspace = at::empty({backward_workspace(layout, element, n)}, x.options().dtype(at::kDouble));
  check_launched(launch_backward(
      layout, element, parameters.functions(), g.const_data_ptr(), dense.const_data_ptr(), grad_x.mutable_data_ptr(),
      {of_points.mutable_data_ptr(), of_left_bound.mutable_data_ptr(), of_right_bound.mutable_data_ptr(),
       of_left_slope.mutable_data_ptr(), of_right_slope.mutable_data_ptr()},
      workspace.mutable_data_ptr<double>(), current_stream()));
  return {with_layout_of(x, dense, grad_x),           of_points.to(points.scalar_type()),
          of_left_bound.to(left_bound.scalar_type()), of_right_bound.to(right_bound.scalar_type()),
          of_left_slope.to(left_slope.scalar_type()), of_right_slope.to(right_slope.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> pwlu_phase1_cuda(const Tensor& x, const Tensor& points, const Tensor&,
                                                    const Tensor&, const Tensor&, const Tensor&) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t count = points.size(0);
  const auto wide = x.options().dtype(wide_dtype(x));
  if (x.numel() == 0) return {at::empty_like(x), at::zeros({count}, wide), at::zeros({count}, wide)};
  const auto element = element_of(x);
  const auto format = format_of(x, true);
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
  m.impl("pwlu", &pwlu::pwlu_cuda);
  m.impl("pwlu_backward", &pwlu::pwlu_backward_cuda);
  m.impl("pwlu_phase1", &pwlu::pwlu_phase1_cuda);
}
