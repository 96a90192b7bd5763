// Funnel ReLU's ops on a CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../tensors.h"
#include "convert.h"
#include "dispatch.h"
#include "frelu_work.h"

namespace pwlu {
namespace {

void check(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(x.dim() == 4 && weight.numel() == x.size(1) * 9 && bias.numel() == x.size(1),
              "frelu: x, weight and bias have shapes ", x.sizes(), ", ", weight.sizes(), " and ", bias.sizes(),
              "; [B, C, H, W], [C, 1, 3, 3] and [C] are needed");
}

NormValues norm_values(const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& weight,
                       const Tensor& bias, double eps) {
  for (const Tensor* values : {&mean, &var, &weight, &bias}) {
    TORCH_CHECK(x.dim() == 4 && values->numel() == x.size(1), "frelu: the norm has values of shape ", values->sizes(),
                " for x of shape ", x.sizes());
  }
  return {doubles(mean), doubles(var), doubles(weight), doubles(bias), eps};
}

// The steps of the ops, on channels [first, last). The table holds what a step needs of those before it.
template <typename T>
struct Steps {
  const Work& work;
  FreluTable& table;
  const FreluDtype<T>& kernels = Dtype<T>::of(*pwlu::kernels().frelu);

  void inference(const Tensor& x, const Tensor& y) const {
    work.for_all(0, work.channels, [&](const Work::Item& item) {
      kernels.inference(at<const T>(x, item), at<T>(y, item), item.block, parameters(item));
    });
  }

  // The convolution's output, with its mean and variance.
  void convolve(int64_t first, int64_t last, const Tensor& x, const Tensor& conv, double* mean, double* var) const {
    const double count = double(work.pixels());
    // What the convolution would give if x were its first element everywhere: it is near the mean where the mean
    // is large beside the deviation, so that the squares do not lose the variance.
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

  // The gradients of x, and of the convolution's weight and bias: [channels, 10].
  void backward(typename FreluDtype<T>::Backward kernel, int64_t first, int64_t last, const Tensor& grad,
                const Tensor& x, const Tensor& kept, const Tensor& grad_x, double* gradients) const {
    const auto sums = work.sum(first, last, 10, [&](const Work::Item& item, double* own) {
      kernel(at<const T>(grad, item), at<const T>(x, item), at<const T>(kept, item), at<T>(grad_x, item), item.block,
             parameters(item), own);
    });
    std::copy(sums.begin(), sums.end(), gradients + first * 10);
  }

 private:
  template <typename P>
  static P* at(const Tensor& tensor, const Work::Item& item) {
    if constexpr (std::is_const_v<P>) return static_cast<P*>(tensor.const_data_ptr()) + item.offset;
    return static_cast<P*>(tensor.mutable_data_ptr()) + item.offset;
  }
  ChannelParameters parameters(const Work::Item& item) const { return table.of(item.channel, item.block.channels); }
};

// A dense x and how its work is cut up.
struct Input {
  at::MemoryFormat format;
  Tensor dense;
  Work work;

  explicit Input(const Tensor& x) : format(format_of(x)), dense(x.contiguous(format)), work(dense, format) {}

  Tensor alike(const Tensor& other) const { return other.contiguous(format); }
  // f(Steps of the dtype)
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
  check(x, weight, bias);
  const Input in(x);
  const Tensor y = at::empty_like(in.dense);
  FreluTable table(weight, bias);
  in.with_steps(table, [&](const auto& steps) { steps.inference(in.dense, y); });
  return with_layout_of(x, in.dense, y);
}

std::tuple<Tensor, Tensor, Tensor> inference_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                      const Tensor& weight, const Tensor& bias) {
  check(x, weight, bias);
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(y), grad_x = at::empty_like(in.dense);
  const Tensor grads = at::empty({x.size(1), 10}, at::kDouble);
  FreluTable table(weight, bias);
  in.with_steps(table, [&](const auto& steps) {
    steps.backward(steps.kernels.inference_backward, 0, x.size(1), g, in.dense, kept, grad_x,
                   grads.data_ptr<double>());
  });
  return {with_layout_of(x, in.dense, grad_x), gradient_of(weight, grads.narrow(1, 0, 9)),
          gradient_of(bias, grads.select(1, 9))};
}

// In training, one op does for a group of channels after the other what the cut ones do for all.

std::tuple<Tensor, Tensor, Tensor, Tensor> training(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                    const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  check(x, weight, bias);
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
  check(x, weight, bias);
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
  const NormValues norm = norm_values(x, mean, var, norm_weight, norm_bias, eps);
  FreluTable table(x.size(1));
  table.set_norm(norm, 0, x.size(1));
  in.with_steps(table, [&](const auto& steps) { steps.normalise(0, x.size(1), in.dense, kept, y); });
  return with_layout_of(x, in.dense, y);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> training_backward(const Tensor& grad, const Tensor& x,
                                                                     const Tensor& conv, const Tensor& mean,
                                                                     const Tensor& var, const Tensor& weight,
                                                                     const Tensor& bias, const Tensor& norm_weight,
                                                                     const Tensor& norm_bias, double eps) {
  check(x, weight, bias);
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(conv), grad_x = at::empty_like(in.dense);
  const Tensor grads = at::empty({x.size(1), 10}, at::kDouble), of_norm = at::empty({2, x.size(1)}, at::kDouble);
  double *of_weight = of_norm.data_ptr<double>(), *of_bias = of_weight + x.size(1);
  const NormValues norm = norm_values(x, mean, var, norm_weight, norm_bias, eps);
  const double count = std::max(1.0, double(in.work.pixels()));
  FreluTable table(weight, bias);
  in.with_steps(table, [&](const auto& steps) {
    in.work.for_groups([&](int64_t first, int64_t last) {
      table.set_norm(norm, first, last);
      steps.norm_sums(first, last, norm, g, in.dense, kept, of_weight);
      for (int64_t c = first; c < last; ++c) table.set_norm_means(norm, c, of_weight[c] / count, of_bias[c] / count);
      steps.backward(steps.kernels.backward, first, last, g, in.dense, kept, grad_x, grads.data_ptr<double>());
    });
  });
  return {with_layout_of(x, in.dense, grad_x), gradient_of(weight, grads.narrow(1, 0, 9)),
          gradient_of(bias, grads.select(1, 9)), gradient_of(norm_weight, of_norm[0]),
          gradient_of(norm_bias, of_norm[1])};
}

Tensor norm_sums(const Tensor& grad, const Tensor& x, const Tensor& conv, const Tensor& mean, const Tensor& var,
                 const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(conv), sums = at::empty({2, x.size(1)}, at::kDouble);
  const NormValues norm = norm_values(x, mean, var, norm_weight, norm_bias, eps);
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
                                                     const Tensor& norm_bias, double eps, const Tensor& norm_means) {
  check(x, weight, bias);
  const Input in(x);
  const Tensor g = in.alike(grad), kept = in.alike(conv), grad_x = at::empty_like(in.dense);
  const Tensor grads = at::empty({x.size(1), 10}, at::kDouble);
  const NormValues norm = norm_values(x, mean, var, norm_weight, norm_bias, eps);
  const auto means = doubles(norm_means);
  TORCH_CHECK(norm_means.numel() == 2 * x.size(1), "frelu: norm_means has shape ", norm_means.sizes());
  FreluTable table(weight, bias);
  table.set_norm(norm, 0, x.size(1));
  for (int64_t c = 0; c < x.size(1); ++c) table.set_norm_means(norm, c, means[c], means[x.size(1) + c]);
  in.with_steps(table, [&](const auto& steps) {
    steps.backward(steps.kernels.backward, 0, x.size(1), g, in.dense, kept, grad_x, grads.data_ptr<double>());
  });
  return {with_layout_of(x, in.dense, grad_x), gradient_of(weight, grads.narrow(1, 0, 9)),
          gradient_of(bias, grads.select(1, 9))};
}

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_IMPL(pwlu_det, CPU, m) {
  using namespace pwlu;
  if (!kernels().frelu) return;
  m.impl("frelu_inference", &inference);
  m.impl("frelu_inference_backward", &inference_backward);
  m.impl("frelu", &training);
  m.impl("frelu_backward", &training_backward);
  m.impl("frelu_convolve", &convolve);
  m.impl("frelu_normalise", &normalise);
  m.impl("frelu_norm_sums", &norm_sums);
  m.impl("frelu_convolve_backward", &convolve_backward);
}
