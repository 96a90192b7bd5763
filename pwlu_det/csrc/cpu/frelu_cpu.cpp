// Funnel ReLU's ops on a CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "convert.h"
#include "dispatch.h"
#include "items.h"

namespace pwlu {
namespace {

// Channels last: how many neighbouring channels are worked on together, and columns at most: three rows of the
// tensors and of what is computed from them stay in the second cache.
constexpr int64_t kChannelsAtOnce = 64, kColumnsAtOnce = 84;
// A block has about as many elements, and not fewer rows: above and below it has one more row to do again.
constexpr int64_t kBlockSize = 1 << 18, kBlockRows = 16;

std::vector<double> doubles(const Tensor& values) {
  const Tensor wide = values.to(at::kDouble).contiguous();
  return {wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + wide.numel()};
}

// The parameters of all channels, as the kernels read them.
class FreluTable {
 public:
  FreluTable(const Tensor& weight, const Tensor& bias)
      : channels_(bias.numel()),
        stride_(channels_ + kLanePadding),
        wide_(kFreluParameters * stride_),
        narrow_(kFreluParameters * stride_) {
    const auto weights = doubles(weight), biases = doubles(bias);
    for (int64_t c = 0; c < channels_; ++c) {
      for (int k = 0; k < 9; ++k) set(FreluParameter(kWeight + k), c, weights[c * 9 + k]);
      set(kBias, c, biases[c]);
    }
  }
  double get(FreluParameter parameter, int64_t channel) const { return wide_[parameter * stride_ + channel]; }
  void set(FreluParameter parameter, int64_t channel, double value) {
    wide_[parameter * stride_ + channel] = value;
    narrow_[parameter * stride_ + channel] = float(value);
  }
  ChannelParameters of(int64_t channel, int channels) const {
    return {channels, kFreluParameters, stride_, narrow_.data() + channel, wide_.data() + channel};
  }

 private:
  int64_t channels_, stride_;
  std::vector<double> wide_;
  std::vector<float> narrow_;
};

// The blocks of a dense x, and where their images and channels begin.
struct Work {
  struct Item {
    int64_t channel, offset;
    FreluBlock block;
  };

  int64_t batch, channels, height, width;
  bool channels_last;

  Work(const Tensor& dense, at::MemoryFormat format)
      : batch(dense.size(0)),
        channels(dense.size(1)),
        height(dense.size(2)),
        width(dense.size(3)),
        channels_last(format != at::MemoryFormat::Contiguous) {}

  int64_t pixels() const { return batch * height * width; }
  int64_t step() const { return channels_last ? kChannelsAtOnce : 1; }

  std::vector<Item> items(int64_t first, int64_t last) const {
    std::vector<Item> all;
    if (pixels() == 0) return all;
    const int64_t stride = channels_last ? channels : 1;
    for (int64_t c = first; c < last; c += step()) {
      const int count = int(std::min(step(), last - c));
      const int64_t parts = channels_last ? (width + kColumnsAtOnce - 1) / kColumnsAtOnce : 1;
      const int64_t columns = (width + parts - 1) / parts;
      const int64_t rows = std::max(kBlockRows, kBlockSize / (columns * count));
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t offset = b * channels * height * width + c * (channels_last ? 1 : height * width);
        for (int64_t begin = 0; begin < height; begin += rows) {
          for (int64_t left = 0; left < width; left += columns) {
            all.push_back({c,
                           offset,
                           {height, width, begin, std::min(height, begin + rows), left,
                            std::min(width, left + columns), stride, count}});
          }
        }
      }
    }
    return all;
  }

  // Calls run(first, last) for groups of channels, one after the other: few enough that what a first pass over them
  // has read is still in the caches for a second, enough that all threads have work.
  template <typename F>
  void for_groups(const F& run) const {
    const int64_t wanted = at::get_num_threads() * kBlockSize / std::max<int64_t>(1, pixels());
    const int64_t group = std::max<int64_t>(1, wanted / step()) * step();
    for (int64_t first = 0; first < channels; first += group) run(first, std::min(channels, first + group));
  }

  template <typename F>
  void for_all(int64_t first, int64_t last, const F& run) const {
    const auto all = items(first, last);
    for_indices(all.size(), (last - first) * pixels(), [&](int64_t i) { run(all[i]); });
  }

  // Calls run(item, sums) with places for `size` sums for each of the item's channels, and adds these up by channel:
  // [last - first, size].
  template <typename F>
  std::vector<double> sum(int64_t first, int64_t last, int64_t size, const F& run) const {
    const auto all = items(first, last);
    std::vector<double> parts(all.size() * step() * size), sums((last - first) * size);
    for_indices(all.size(), (last - first) * pixels(),
                [&](int64_t i) { run(all[i], parts.data() + i * step() * size); });
    for (size_t i = 0; i < all.size(); ++i) {
      const double* part = parts.data() + i * step() * size;
      double* own = sums.data() + (all[i].channel - first) * size;
      for (int64_t j = 0; j < all[i].block.channels * size; ++j) own[j] += part[j];
    }
    return sums;
  }
};

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(x.dim() == 4 && weight.numel() == x.size(1) * 9 && bias.numel() == x.size(1),
              "frelu: x, weight and bias have shapes ", x.sizes(), ", ", weight.sizes(), " and ", bias.sizes(),
              "; [B, C, H, W], [C, 1, 3, 3] and [C] are needed");
}

Tensor inference(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check(x, weight, bias);
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  const FreluTable table(weight, bias);
  const Work work(dense, format);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto& run = Dtype<T>::of(*kernels().frelu);
    work.for_all(0, work.channels, [&](const Work::Item& item) {
      run.inference(read<T>(dense) + item.offset, write<T>(y) + item.offset, item.block,
                    table.of(item.channel, item.block.channels));
    });
  });
  return with_layout_of(x, dense, y);
}

// Gradients of the nine weights and the bias of channels [first, last): [last - first, 10].
template <typename T>
std::vector<double> convolution_backward(typename FreluDtype<T>::Backward run, const Work& work,
                                         const FreluTable& table, int64_t first, int64_t last, const Tensor& grad,
                                         const Tensor& x, const Tensor& kept, const Tensor& grad_x) {
  return work.sum(first, last, 10, [&](const Work::Item& item, double* sums) {
    run(read<T>(grad) + item.offset, read<T>(x) + item.offset, read<T>(kept) + item.offset,
        write<T>(grad_x) + item.offset, item.block, table.of(item.channel, item.block.channels), sums);
  });
}

std::tuple<Tensor, Tensor, Tensor> inference_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                      const Tensor& weight, const Tensor& bias) {
  check(x, weight, bias);
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), g = grad.contiguous(format), kept = y.contiguous(format);
  const Tensor grad_x = at::empty_like(dense), grads = at::empty({x.size(1), 10}, at::kDouble);
  const FreluTable table(weight, bias);
  const Work work(dense, format);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto run = Dtype<T>::of(*kernels().frelu).inference_backward;
    const auto sums = convolution_backward<T>(run, work, table, 0, work.channels, g, dense, kept, grad_x);
    std::copy(sums.begin(), sums.end(), grads.data_ptr<double>());
  });
  return {with_layout_of(x, dense, grad_x), gradient_of(weight, grads.narrow(1, 0, 9)),
          gradient_of(bias, grads.select(1, 9))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> training(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                    const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  check(x, weight, bias);
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), conv = at::empty_like(dense), y = at::empty_like(dense);
  const Work work(dense, format);
  const Tensor means = at::empty({work.channels}, at::kDouble), vars = at::empty({work.channels}, at::kDouble);
  double *mean = means.data_ptr<double>(), *var = vars.data_ptr<double>();
  const auto gamma = doubles(norm_weight), beta = doubles(norm_bias);
  FreluTable table(weight, bias);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto& run = Dtype<T>::of(*kernels().frelu);
    const double count = double(work.pixels());
    work.for_groups([&](int64_t first, int64_t last) {
      // What the convolution would give if x were its first element everywhere: it is near the mean where the mean
      // is large beside the deviation, so that the squares do not lose the variance.
      for (int64_t c = first; c < last && count > 0; ++c) {
        double weights = 0;
        for (int k = 0; k < 9; ++k) weights += table.get(FreluParameter(kWeight + k), c);
        const double x0 = to_float(read<T>(dense)[c * (work.channels_last ? 1 : work.height * work.width)]);
        const double shift = table.get(kBias, c) + x0 * weights;
        table.set(kShift, c, std::isfinite(float(shift)) ? float(shift) : 0);
      }
      const auto sums = work.sum(first, last, 2, [&](const Work::Item& item, double* own) {
        run.convolve(read<T>(dense) + item.offset, write<T>(conv) + item.offset, item.block,
                     table.of(item.channel, item.block.channels), own);
      });
      for (int64_t c = first; c < last; ++c) {
        const double difference = sums[(c - first) * 2] / count, square = sums[(c - first) * 2 + 1] / count;
        const double variance = square - difference * difference;
        mean[c] = table.get(kShift, c) + difference;
        var[c] = variance < 0 ? 0 : variance;  // not std::max, which would hide NaN
        table.set(kMean, c, mean[c]);
        table.set(kScale, c, gamma[c] / std::sqrt(var[c] + eps));
        table.set(kBeta, c, beta[c]);
      }
      work.for_all(first, last, [&](const Work::Item& item) {
        run.normalise(read<T>(dense) + item.offset, read<T>(conv) + item.offset, write<T>(y) + item.offset,
                      item.block, table.of(item.channel, item.block.channels));
      });
    });
  });
  return {with_layout_of(x, dense, y), with_layout_of(x, dense, conv), means.to(compute_dtype(x)),
          vars.to(compute_dtype(x))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> training_backward(const Tensor& grad, const Tensor& x,
                                                                     const Tensor& conv, const Tensor& mean,
                                                                     const Tensor& var, const Tensor& weight,
                                                                     const Tensor& bias, const Tensor& norm_weight,
                                                                     const Tensor& norm_bias, double eps) {
  check(x, weight, bias);
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), g = grad.contiguous(format), kept = conv.contiguous(format);
  const Tensor grad_x = at::empty_like(dense);
  const Work work(dense, format);
  // of the convolution's weights and bias, of gamma and of beta
  const Tensor grads = at::empty({work.channels, 12}, at::kDouble);
  const auto means = doubles(mean), vars = doubles(var), gamma = doubles(norm_weight), beta = doubles(norm_bias);
  FreluTable table(weight, bias);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto& run = Dtype<T>::of(*kernels().frelu);
    const double count = std::max(1.0, double(work.pixels()));
    work.for_groups([&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        table.set(kMean, c, means[c]);
        table.set(kScale, c, gamma[c] / std::sqrt(vars[c] + eps));
        table.set(kBeta, c, beta[c]);
      }
      const auto sums = work.sum(first, last, 2, [&](const Work::Item& item, double* own) {
        run.norm_sums(read<T>(g) + item.offset, read<T>(dense) + item.offset, read<T>(kept) + item.offset, item.block,
                      table.of(item.channel, item.block.channels), own);
      });
      // The batch norm's backward: the mean and the variance depend on every element, too.
      for (int64_t c = first; c < last; ++c) {
        double* own = grads.data_ptr<double>() + c * 12;
        const double rstd = 1 / std::sqrt(vars[c] + eps);
        own[10] = sums[(c - first) * 2 + 1] * rstd;
        own[11] = sums[(c - first) * 2];
        table.set(kSlope, c, -gamma[c] * rstd * rstd * own[10] / count);
        table.set(kOffset, c, -gamma[c] * rstd * own[11] / count);
      }
      const auto by_conv = convolution_backward<T>(run.backward, work, table, first, last, g, dense, kept, grad_x);
      for (int64_t c = first; c < last; ++c) {
        std::copy_n(by_conv.data() + (c - first) * 10, 10, grads.data_ptr<double>() + c * 12);
      }
    });
  });
  const auto part = [&](const Tensor& parameter, int64_t from, int64_t size) {
    return gradient_of(parameter, grads.narrow(1, from, size));
  };
  return {with_layout_of(x, dense, grad_x), part(weight, 0, 9), part(bias, 9, 1), part(norm_weight, 10, 1),
          part(norm_bias, 11, 1)};
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
}
