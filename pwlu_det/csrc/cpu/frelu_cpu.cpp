// Funnel ReLU's ops on a CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <utility>
#include <vector>

#include "../signatures.h"
#include "../tensors.h"
#include "convert.h"
#include "dispatch.h"
#include "frelu_work.h"

namespace pwlu {
namespace {

// The steps of the ops, on channels [first, last). The table holds the results of earlier steps that a step needs.
template <typename T>
struct Steps {
  const Work& work;
  FreluTable& table;
  const FreluDtype<T>& kernels = pwlu::kernels().frelu->of<T>();

  void inference(const Tensor& x, const Tensor& y) const {
    work.for_all(0, work.channels, [&](const Work::Item& item) {
      kernels.inference(at<const T>(x, item), at<T>(y, item), item.block, parameters(item));
    });
  }

  // The convolution's output, with its mean and variance.
  void convolve(int64_t first, int64_t last, const Tensor& x, const Tensor& conv, double* mean, double* var) const {
    const double count = double(work.pixels());
    // The output of the convolution if all of x were equal to its first element. If the mean is large compared with
    // the deviation, this is near the mean, so that the squares do not lose the variance.
    for (int64_t c = first; c < last && count > 0; ++c) {
      double weights = 0;
      for (int k = 0; k < 9; ++k) weights += table.get(FreluParameter(kWeight + k), c);
      const auto* values = static_cast<const T*>(x.const_data_ptr());
      const double x0 = to_float(values[c * (work.channels_last ? 1 : work.height * work.width)]);
      const double shift = table.get(kBias, c) + x0 * weights;
      table.set(kShift, c, std::isfinite(float(shift)) ? float(shift) : 0);
    }
    const auto sums = work.sum(first, last, 2, [&](const Work::Item& item, double* own) {
      kernels.convolve(at<const T>(x, item), at<T>(conv, item), item.block, parameters(item), own);
    });
    for (int64_t c = first; c < last; ++c) {
      if (count == 0) {
        mean[c] = var[c] = 0;
        continue;
      }
      const double difference = sums[(c - first) * 2] / count, square = sums[(c - first) * 2 + 1] / count;
      const double variance = square - difference * difference;
      mean[c] = table.get(kShift, c) + difference;
      var[c] = variance < 0 ? 0 : variance;  // not std::max, which would hide NaN
    }
  }

  void normalise(int64_t first, int64_t last, const Tensor& x, const Tensor& conv, const Tensor& y) const {
    work.for_all(first, last, [&](const Work::Item& item) {
      kernels.normalise(at<const T>(x, item), at<const T>(conv, item), at<T>(y, item), item.block, parameters(item));
    });
  }

  // The gradients of the norm's weight and bias: [2, channels].
  void norm_sums(int64_t first, int64_t last, const NormValues& norm, const Tensor& grad, const Tensor& x,
                 const Tensor& conv, double* gradients) const {
    const auto sums = work.sum(first, last, 2, [&](const Work::Item& item, double* own) {
      kernels.norm_sums(at<const T>(grad, item), at<const T>(x, item), at<const T>(conv, item), item.block,
                        parameters(item), own);
    });
    for (int64_t c = first; c < last; ++c) {
      gradients[c] = sums[(c - first) * 2 + 1] * norm.rstd(c);
      gradients[work.channels + c] = sums[(c - first) * 2];
    }
  }

  // The gradients of x and of the convolution's weight and bias, [channels, 10]; undefined if not requested.
  void backward(typename FreluDtype<T>::Backward kernel, int64_t first, int64_t last, const Tensor& grad,
                const Tensor& x, const Tensor& kept, const Tensor& grad_x, const Tensor& gradients) const {
    const auto sums = work.sum(first, last, gradients.defined() ? 10 : 0, [&](const Work::Item& item, double* own) {
      kernel(at<const T>(grad, item), at<const T>(x, item), at<const T>(kept, item),
             grad_x.defined() ? at<T>(grad_x, item) : nullptr, item.block, parameters(item), own);
    });
    if (gradients.defined()) std::copy(sums.begin(), sums.end(), gradients.data_ptr<double>() + first * 10);
  }

 private:
  template <typename P>
  static P* at(const Tensor& tensor, const Work::Item& item) {
    if constexpr (std::is_const_v<P>) return static_cast<P*>(tensor.const_data_ptr()) + item.offset;
    return static_cast<P*>(tensor.mutable_data_ptr()) + item.offset;
  }
  ChannelParameters parameters(const Work::Item& item) const { return table.of(item.channel, item.block.channels); }
};

// A dense x, and how the work on it is divided.
struct Input {
  at::MemoryFormat format;
  Tensor dense;
  Work work;

  explicit Input(const Tensor& x) : format(format_of(x)), dense(x.contiguous(format)), work(dense, format) {}

  Tensor alike(const Tensor& other) const { return other.contiguous(format); }
  // Memory for the gradient of x and the sums of the convolution's gradients, if they are requested.
  struct Gradients {
    Tensor x, sums;
  };
  Gradients gradients(std::array<bool, 2> output_mask) const {
    return {output_mask[0] ? at::empty_like(dense) : Tensor(),
            output_mask[1] ? at::empty({dense.size(1), 10}, at::kDouble) : Tensor()};
  }
  // Calls f with the Steps of the dtype.
  template <typename F>
  void with_steps(FreluTable& table, const F& f) const {
    with_dtype(dense, [&](auto type) { f(Steps<decltype(type)>{work, table}); });
  }
};

// [channels], as the ops return it.
Tensor by_channel(const Tensor& x, const std::vector<double>& values) {
  const Tensor result = at::empty({int64_t(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), result.data_ptr<double>());
  return result.to(compute_dtype(x));
}

Tensor inference(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Input in(x);
  const Tensor y = at::empty_like(in.dense);
  FreluTable table(weight, bias);
  in.with_steps(table, [&](const auto& steps) { steps.inference(in.dense, y); });
  return with_layout_of(x, in.dense, y);
}

// The gradients of weight and bias, from their sums by channel.
std::pair<Tensor, Tensor> convolution_gradients(const Tensor& weight, const Tensor& bias, const Tensor& sums) {
  if (!sums.defined()) return {not_computed(weight), not_computed(bias)};
  return {gradient_of(weight, sums.narrow(1, 0, 9)), gradient_of(bias, sums.select(1, 9))};
}

std::tuple<Tensor, Tensor, Tensor> inference_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                      const Tensor& weight, const Tensor& bias,
                                                      std::array<bool, 2> output_mask) {
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(y);
  const auto out = in.gradients(output_mask);
  FreluTable table(weight, bias);
  in.with_steps(table, [&](const auto& steps) {
    steps.backward(steps.kernels.inference_backward, 0, x.size(1), g, in.dense, kept, out.x, out.sums);
  });
  const auto [grad_weight, grad_bias] = convolution_gradients(weight, bias, out.sums);
  return {with_layout_of(x, in.dense, out.x), grad_weight, grad_bias};
}

// In training, the combined op runs all steps on one group of channels at a time; the separate ops run one step each
// on all channels.

std::tuple<Tensor, Tensor, Tensor, Tensor> training(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                    const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const Input in(x);
  const Tensor conv = at::empty_like(in.dense), y = at::empty_like(in.dense);
  FreluTable table(weight, bias);
  NormValues norm{std::vector<double>(x.size(1)), std::vector<double>(x.size(1)), doubles(norm_weight),
                  doubles(norm_bias), eps};
  in.with_steps(table, [&](const auto& steps) {
    in.work.for_groups([&](int64_t first, int64_t last) {
      steps.convolve(first, last, in.dense, conv, norm.mean.data(), norm.var.data());
      table.set_norm(norm, first, last);
      steps.normalise(first, last, in.dense, conv, y);
    });
  });
  return {with_layout_of(x, in.dense, y), with_layout_of(x, in.dense, conv), by_channel(x, norm.mean),
          by_channel(x, norm.var)};
}

std::tuple<Tensor, Tensor, Tensor> convolve(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Input in(x);
  const Tensor conv = at::empty_like(in.dense);
  FreluTable table(weight, bias);
  std::vector<double> mean(x.size(1)), var(x.size(1));
  in.with_steps(table,
                [&](const auto& steps) { steps.convolve(0, x.size(1), in.dense, conv, mean.data(), var.data()); });
  return {with_layout_of(x, in.dense, conv), by_channel(x, mean), by_channel(x, var)};
}

Tensor normalise(const Tensor& x, const Tensor& conv, const Tensor& mean, const Tensor& var,
                 const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const Input in(x);
  const Tensor kept = in.alike(conv), y = at::empty_like(in.dense);
  const NormValues norm = norm_values(mean, var, norm_weight, norm_bias, eps);
  FreluTable table(x.size(1));
  table.set_norm(norm, 0, x.size(1));
  in.with_steps(table, [&](const auto& steps) { steps.normalise(0, x.size(1), in.dense, kept, y); });
  return with_layout_of(x, in.dense, y);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> training_backward(const Tensor& grad, const Tensor& x,
                                                                     const Tensor& conv, const Tensor& mean,
                                                                     const Tensor& var, const Tensor& weight,
                                                                     const Tensor& bias, const Tensor& norm_weight,
                                                                     const Tensor& norm_bias, double eps,
                                                                     std::array<bool, 2> output_mask) {
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(conv), of_norm = at::empty({2, x.size(1)}, at::kDouble);
  const auto out = in.gradients(output_mask);
  double *of_weight = of_norm.data_ptr<double>(), *of_bias = of_weight + x.size(1);
  const NormValues norm = norm_values(mean, var, norm_weight, norm_bias, eps);
  const double count = std::max(1.0, double(in.work.pixels()));
  FreluTable table(weight, bias);
  in.with_steps(table, [&](const auto& steps) {
    in.work.for_groups([&](int64_t first, int64_t last) {
      table.set_norm(norm, first, last);
      steps.norm_sums(first, last, norm, g, in.dense, kept, of_weight);
      for (int64_t c = first; c < last; ++c) table.set_norm_means(norm, c, of_weight[c] / count, of_bias[c] / count);
      steps.backward(steps.kernels.backward, first, last, g, in.dense, kept, out.x, out.sums);
    });
  });
  const auto [grad_weight, grad_bias] = convolution_gradients(weight, bias, out.sums);
  const bool with_parameters = output_mask[1];
  return {with_layout_of(x, in.dense, out.x), grad_weight, grad_bias,
          with_parameters ? gradient_of(norm_weight, of_norm[0]) : not_computed(norm_weight),
          with_parameters ? gradient_of(norm_bias, of_norm[1]) : not_computed(norm_bias)};
}

Tensor norm_sums(const Tensor& grad, const Tensor& x, const Tensor& conv, const Tensor& mean, const Tensor& var,
                 const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(conv), sums = at::empty({2, x.size(1)}, at::kDouble);
  const NormValues norm = norm_values(mean, var, norm_weight, norm_bias, eps);
  FreluTable table(x.size(1));
  table.set_norm(norm, 0, x.size(1));
  in.with_steps(table, [&](const auto& steps) {
    steps.norm_sums(0, x.size(1), norm, g, in.dense, kept, sums.data_ptr<double>());
  });
  return sums.to(compute_dtype(x));
}

std::tuple<Tensor, Tensor, Tensor> convolve_backward(const Tensor& grad, const Tensor& x, const Tensor& conv,
                                                     const Tensor& mean, const Tensor& var, const Tensor& weight,
                                                     const Tensor& bias, const Tensor& norm_weight,
                                                     const Tensor& norm_bias, double eps, const Tensor& norm_means,
                                                     std::array<bool, 2> output_mask) {
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(conv);
  const auto out = in.gradients(output_mask);
  const NormValues norm = norm_values(mean, var, norm_weight, norm_bias, eps);
  const auto means = doubles(norm_means);
  FreluTable table(weight, bias);
  table.set_norm(norm, 0, x.size(1));
  for (int64_t c = 0; c < x.size(1); ++c) table.set_norm_means(norm, c, means[c], means[x.size(1) + c]);
  in.with_steps(table, [&](const auto& steps) {
    steps.backward(steps.kernels.backward, 0, x.size(1), g, in.dense, kept, out.x, out.sums);
  });
  const auto [grad_weight, grad_bias] = convolution_gradients(weight, bias, out.sums);
  return {with_layout_of(x, in.dense, out.x), grad_weight, grad_bias};
}

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_FRAGMENT(pwlu_det, m) {
  using namespace pwlu;
  const bool has_kernel = kernels().frelu;
  define_op<kFreluInference, &inference>(m, has_kernel);
  define_op<kFreluInferenceBackward, &inference_backward>(m, has_kernel);
  define_op<kFrelu, &training>(m, has_kernel);
  define_op<kFreluBackward, &training_backward>(m, has_kernel);
  define_op<kFreluConvolve, &convolve>(m, has_kernel);
  define_op<kFreluNormalise, &normalise>(m, has_kernel);
  define_op<kFreluNormSums, &norm_sums>(m, has_kernel);
  define_op<kFreluConvolveBackward, &convolve_backward>(m, has_kernel);
}
