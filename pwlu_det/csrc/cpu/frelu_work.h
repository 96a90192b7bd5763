// Funnel ReLU's work on a CPU: the parameters as the kernels read them, and the blocks that images are divided into.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "frelu_kernels.h"
#include "items.h"
#include "norm_values.h"

namespace pwlu {
namespace {

using at::Tensor;

// Channels last: the number of adjacent channels and the maximum number of columns that are processed together. Three
// rows of the tensors and of intermediate results stay in the L2 cache.
constexpr int64_t kChannelsAtOnce = 64, kColumnsAtOnce = 84;
// The approximate number of elements in a block, and its minimum number of rows: each block has to recompute one row
// above it and one below it.
constexpr int64_t kBlockSize = 1 << 18, kBlockRows = 16;

// The parameters of all channels, as the kernels read them.
class FreluTable {
 public:
  explicit FreluTable(int64_t channels)
      : stride_(channels + kLanePadding), wide_(kFreluParameters * stride_), narrow_(kFreluParameters * stride_) {}
  FreluTable(const Tensor& weight, const Tensor& bias) : FreluTable(bias.numel()) {
    const auto weights = doubles(weight), biases = doubles(bias);
    for (int64_t c = 0; c < bias.numel(); ++c) {
      for (int k = 0; k < 9; ++k) set(FreluParameter(kWeight + k), c, weights[c * 9 + k]);
      set(kBias, c, biases[c]);
    }
  }
  void set_norm(const NormValues& norm, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      set(kMean, c, norm.mean[c]);
      set(kScale, c, norm.scale(c));
      set(kBeta, c, norm.bias[c]);
    }
  }
  // Takes the gradients of the norm's weight and bias, divided by the number of elements.
  void set_norm_means(const NormValues& norm, int64_t c, double of_weight, double of_bias) {
    const double scale = norm.scale(c);
    set(kSlope, c, -scale * norm.rstd(c) * of_weight);
    set(kOffset, c, -scale * of_bias);
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
  int64_t stride_;
  std::vector<double> wide_;
  std::vector<float> narrow_;
};

// The blocks of a dense x, and the offsets of their images and channels.
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

  // Calls run(first, last) for one group of channels after another. A group is small enough that its data stays in
  // the caches between two passes, and large enough that all threads have work.
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

  // Calls run(item, sums) with room for `size` sums for each channel of the item, and adds them up by channel:
  // [last - first, size]. If size is 0, `sums` is a null pointer.
  template <typename F>
  std::vector<double> sum(int64_t first, int64_t last, int64_t size, const F& run) const {
    const auto all = items(first, last);
    std::vector<double> parts(all.size() * step() * size), sums((last - first) * size);
    for_indices(all.size(), (last - first) * pixels(),
                [&](int64_t i) { run(all[i], size ? parts.data() + i * step() * size : nullptr); });
    for (size_t i = 0; i < all.size(); ++i) {
      const double* part = parts.data() + i * step() * size;
      double* own = sums.data() + (all[i].channel - first) * size;
      for (int64_t j = 0; j < all[i].block.channels * size; ++j) own[j] += part[j];
    }
    return sums;
  }
};

}  // namespace
}  // namespace pwlu
