// The ops of Funnel ReLU on CUDA. In training, frelu calls the ops that frelu_sync is made of, one after another.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "../signatures.h"
#include "frelu_launch.h"
#include "norm_tensors.h"

namespace pwlu {
namespace {

// x and its shape, as the kernels take them.
struct Input {
  at::MemoryFormat format;
  Tensor dense;
  Images images;
  Element element;

  explicit Input(const Tensor& x)
      : format(format_of(x)),
        dense(x.contiguous(format)),
        images{x.size(0), x.size(1), x.size(2), x.size(3), format != at::MemoryFormat::Contiguous},
        element(element_of(x)) {}

  Tensor in_format(const Tensor& other) const { return other.contiguous(format); }
  Tensor per_channel() const { return empty({dense.size(1)}); }
  Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, dense.options().dtype(compute_dtype(dense))); }
  Tensor workspace() const { return make_workspace(dense, frelu_workspace(images, element)); }
};

struct ConvolutionTensors {
  Tensor weight, bias;

  ConvolutionTensors(const Tensor& x, const Tensor& weight, const Tensor& bias)
      : weight(dense_parameter(x, weight)), bias(dense_parameter(x, bias)) {}
  Convolution arrays() const { return {weight.const_data_ptr(), bias.const_data_ptr()}; }
};

Tensor inference(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const c10::cuda::CUDAGuard guard(x.device());
  const ConvolutionTensors convolution(x, weight, bias);
  if (x.numel() == 0) return at::empty_like(x);
  const Input in(x);
  const Tensor y = at::empty_like(in.dense);
  check_launched(launch_frelu_inference(in.images, in.element, convolution.arrays(), in.dense.const_data_ptr(),
                                        y.mutable_data_ptr(), current_stream()));
  return with_layout_of(x, in.dense, y);
}

std::tuple<Tensor, Tensor, Tensor> convolve(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const c10::cuda::CUDAGuard guard(x.device());
  const ConvolutionTensors convolution(x, weight, bias);
  const Input in(x);
  if (x.numel() == 0) return {at::empty_like(x), in.per_channel().zero_(), in.per_channel().zero_()};
  const Tensor conv = at::empty_like(in.dense), mean = in.per_channel(), var = in.per_channel();
  const Tensor workspace = in.workspace();
  check_launched(launch_frelu_convolve(in.images, in.element, convolution.arrays(), in.dense.const_data_ptr(),
                                       conv.mutable_data_ptr(), mean.mutable_data_ptr(), var.mutable_data_ptr(),
                                       workspace.mutable_data_ptr<double>(), current_stream()));
  return {with_layout_of(x, in.dense, conv), mean, var};
}

Tensor normalise(const Tensor& x, const Tensor& conv, const Tensor& mean, const Tensor& var,
                 const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  const NormTensors norm(x, mean, var, norm_weight, norm_bias, eps);
  if (x.numel() == 0) return at::empty_like(x);
  const Input in(x);
  const Tensor dense_conv = in.in_format(conv), y = at::empty_like(in.dense);
  check_launched(launch_frelu_normalise(in.images, in.element, norm.arrays(), in.dense.const_data_ptr(),
                                        dense_conv.const_data_ptr(), y.mutable_data_ptr(), current_stream()));
  return with_layout_of(x, in.dense, y);
}

Tensor norm_sums(const Tensor& grad, const Tensor& x, const Tensor& conv, const Tensor& mean, const Tensor& var,
                 const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  const NormTensors norm(x, mean, var, norm_weight, norm_bias, eps);
  const Input in(x);
  const Tensor sums = in.empty({2, x.size(1)});
  if (x.numel() == 0) return sums.zero_();
  const Tensor g = in.in_format(grad), dense_conv = in.in_format(conv), workspace = in.workspace();
  check_launched(launch_frelu_norm_sums(
      in.images, in.element, norm.arrays(), g.const_data_ptr(), in.dense.const_data_ptr(),
      dense_conv.const_data_ptr(), sums.mutable_data_ptr(), workspace.mutable_data_ptr<double>(), current_stream()));
  return sums;
}

// `saved` is the convolution's output; in inference, where norm is null, it is y.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& saved,
                                            const Tensor& weight, const Tensor& bias, const Norm* norm,
                                            const void* norm_means, std::array<bool, 2> output_mask) {
  const auto [with_x, with_parameters] = output_mask;
  const Input in(x);
  const Tensor grad_x = with_x ? at::empty_like(in.dense) : Tensor();
  Tensor of_weight, of_bias, workspace;
  if (with_parameters) of_weight = in.empty({x.size(1), 9}).zero_(), of_bias = in.per_channel().zero_();
  if (x.numel() > 0 && (with_x || with_parameters)) {
    const ConvolutionTensors convolution(x, weight, bias);
    const Tensor g = in.in_format(grad), dense_saved = in.in_format(saved);
    if (with_parameters) workspace = in.workspace();
    const ConvolutionGradients places{data_or_null(of_weight), data_or_null(of_bias)};
    check_launched(launch_frelu_backward(in.images, in.element, convolution.arrays(), norm, norm_means,
                                         g.const_data_ptr(), in.dense.const_data_ptr(), dense_saved.const_data_ptr(),
                                         data_or_null(grad_x), with_parameters ? &places : nullptr,
                                         data_or_null<double>(workspace), current_stream()));
  }
  return {with_layout_of(x, in.dense, grad_x),
          with_parameters ? gradient_of(weight, of_weight) : not_computed(weight),
          with_parameters ? gradient_of(bias, of_bias) : not_computed(bias)};
}

std::tuple<Tensor, Tensor, Tensor> inference_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                      const Tensor& weight, const Tensor& bias,
                                                      std::array<bool, 2> output_mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  return backward(grad, x, y, weight, bias, nullptr, nullptr, output_mask);
}

std::tuple<Tensor, Tensor, Tensor> convolve_backward(const Tensor& grad, const Tensor& x, const Tensor& conv,
                                                     const Tensor& mean, const Tensor& var, const Tensor& weight,
                                                     const Tensor& bias, const Tensor& norm_weight,
                                                     const Tensor& norm_bias, double eps, const Tensor& norm_means,
                                                     std::array<bool, 2> output_mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  const NormTensors norm(x, mean, var, norm_weight, norm_bias, eps);
  const Tensor means = dense_parameter(x, norm_means);
  const Norm arrays = norm.arrays();
  return backward(grad, x, conv, weight, bias, &arrays, means.const_data_ptr(), output_mask);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> training(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                    const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const auto [conv, mean, var] = convolve(x, weight, bias);
  return {normalise(x, conv, mean, var, norm_weight, norm_bias, eps), conv, mean, var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> training_backward(const Tensor& grad, const Tensor& x,
                                                                     const Tensor& conv, const Tensor& mean,
                                                                     const Tensor& var, const Tensor& weight,
                                                                     const Tensor& bias, const Tensor& norm_weight,
                                                                     const Tensor& norm_bias, double eps,
                                                                     std::array<bool, 2> output_mask) {
  const Tensor sums = norm_sums(grad, x, conv, mean, var, norm_weight, norm_bias, eps);
  const Tensor means = sums / double(std::max<int64_t>(1, x.numel() / x.size(1)));
  auto [grad_x, grad_weight, grad_bias] =
      convolve_backward(grad, x, conv, mean, var, weight, bias, norm_weight, norm_bias, eps, means, output_mask);
  const bool with_parameters = output_mask[1];
  return {grad_x, grad_weight, grad_bias,
          with_parameters ? gradient_of(norm_weight, sums[0]) : not_computed(norm_weight),
          with_parameters ? gradient_of(norm_bias, sums[1]) : not_computed(norm_bias)};
}

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_IMPL(pwlu_det, CUDA, m) {
  using namespace pwlu;
  add_op<kFrelu, &training>(m);
  add_op<kFreluBackward, &training_backward>(m);
  add_op<kFreluInference, &inference>(m);
  add_op<kFreluInferenceBackward, &inference_backward>(m);
  add_op<kFreluConvolve, &convolve>(m);
  add_op<kFreluNormalise, &normalise>(m);
  add_op<kFreluNormSums, &norm_sums>(m);
  add_op<kFreluConvolveBackward, &convolve_backward>(m);
}
