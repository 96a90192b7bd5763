// How the work of a norm followed by an activation is divided.
//
// The work on a group of channels has two passes in training: sums over all elements, and then the results that
// depend on them. A group is one channel, or (channels last) a block of adjacent channels. One thread does both
// passes on it, so that its memory is still in the cache in the second; if there are too few groups, the threads
// share each pass. The sums are over pieces of a fixed size and are added up in order, so they do not depend on the
// number of threads.
#pragma once

#include "items.h"
#include "norm_kernels.h"
#include "norm_stages.h"

namespace pwlu {
namespace {

constexpr int64_t kPieceSize = 1 << 15;  // the approximate number of elements
// The number of elements of a chunk, which is processed at once: in one channel, few enough for the L1 cache; with
// channels last, so many that PWLU's sums over bins are not cleared and added up for a few rows each time.
constexpr int64_t kChunkSize = 1 << 10, kBufferSize = 1 << 14;

// A range of the pixels of all samples in a group.
struct Pixels {
  int64_t begin, end;
};

class NormWork {
 public:
  NormWork(const Tensor& dense, at::MemoryFormat format) : layout_(layout_of(dense, dense.size(1), format)) {
    const int64_t step = layout_.channels_last ? kBlockChannels : 1;
    for (int64_t c = 0; c < layout_.channels; c += step) {
      groups_.push_back({int64_t(groups_.size()), c, int(std::min(step, layout_.channels - c))});
    }
  }

  int64_t pixels() const { return layout_.batch * layout_.inner; }
  int64_t num_groups() const { return groups_.size(); }
  bool channels_last() const { return layout_.channels_last; }
  // The offset of the first element of a channel.
  int64_t first(int64_t channel) const { return channels_last() ? channel : channel * layout_.inner; }

  template <typename F>
  void for_groups(const F& run) const {
    if (num_groups() < at::get_num_threads()) {
      for (const NormGroup& group : groups_) run(group);
    } else {
      for_indices(num_groups(), layout_.numel(), [&](int64_t i) { run(groups_[i]); });
    }
  }

  template <typename F>
  void for_pieces(const NormGroup& group, const F& run) const {
    const int64_t size = std::max<int64_t>(1, kPieceSize / group.channels), count = (pixels() + size - 1) / size;
    for_indices(count, pixels() * group.channels,
                [&](int64_t i) { run(i, Pixels{i * size, std::min(pixels(), (i + 1) * size)}); });
  }

  // Calls run(pixels, sums) for all pieces with room for `width` sums, and adds them up.
  template <typename S, typename F>
  std::vector<S> sum_pieces(const NormGroup& group, int64_t width, const F& run) const {
    const int64_t size = std::max<int64_t>(1, kPieceSize / group.channels), count = (pixels() + size - 1) / size;
    std::vector<S> parts(count * width, S{});
    for_pieces(group, [&](int64_t i, const Pixels& pixels) { run(pixels, parts.data() + i * width); });
    for (int64_t i = 1; i < count; ++i) {
      for (int64_t j = 0; j < width; ++j) parts[j] += parts[i * width + j];
    }
    parts.resize(width);
    return parts;
  }

  // Calls run(pixels) for parts of a piece that fit a buffer. Long rows are cut at their ends, so that they need no
  // buffer to be contiguous.
  template <typename F>
  void for_chunks(const NormGroup& group, const Pixels& piece, const F& run) const {
    const int64_t size = channels_last() ? kBufferSize / group.channels : kChunkSize;
    const bool at_ends = !channels_last() && layout_.inner >= kChunkSize / 8;
    for (int64_t begin = piece.begin; begin < piece.end;) {
      const int64_t row_end = at_ends ? (begin / layout_.inner + 1) * layout_.inner : piece.end;
      const int64_t end = std::min({begin + size, row_end, piece.end});
      run(Pixels{begin, end});
      begin = end;
    }
  }

  // Calls run(offset, at, rows) for each part of the memory that has one stride; `at` is its place in a buffer.
  template <typename F>
  void for_memory(const NormGroup& group, const Pixels& pixels, const ChannelParameters& p, const F& run) const {
    if (channels_last()) {
      return run(pixels.begin * layout_.channels + group.channel, 0,
                 NormRows{pixels.end - pixels.begin, layout_.channels, p});
    }
    for (int64_t i = pixels.begin; i < pixels.end;) {
      const int64_t sample = i / layout_.inner, in_row = i % layout_.inner;
      const int64_t n = std::min(pixels.end - i, layout_.inner - in_row);
      run((sample * layout_.channels + group.channel) * layout_.inner + in_row, i - pixels.begin, NormRows{n, 1, p});
      i += n;
    }
  }
  // Whether the memory is contiguous, like a buffer, and where it starts.
  bool is_contiguous(const NormGroup& group, const Pixels& pixels) const {
    if (channels_last()) return group.channels == layout_.channels;
    return pixels.begin / layout_.inner == (pixels.end - 1) / layout_.inner;
  }
  int64_t offset(const NormGroup& group, const Pixels& pixels) const {
    if (channels_last()) return pixels.begin * layout_.channels + group.channel;
    const int64_t sample = pixels.begin / layout_.inner;
    return (sample * layout_.channels + group.channel) * layout_.inner + pixels.begin % layout_.inner;
  }

 private:
  Layout layout_;
  std::vector<NormGroup> groups_;
};

// The parameters of the norms of all channels, as the kernels read them.
class NormTable {
 public:
  explicit NormTable(int64_t channels)
      : stride_(channels + kLanePadding), wide_(2 * kNormParameters * stride_), narrow_(wide_.size()) {}

  // `row` is kNormParameters more for the added tensor.
  void set(int row, int64_t channel, double value) {
    wide_[row * stride_ + channel] = value;
    narrow_[row * stride_ + channel] = float(value);
  }
  ChannelParameters of(const NormGroup& group) const {
    return {group.channels, 2 * kNormParameters, stride_, narrow_.data() + group.channel,
            wide_.data() + group.channel};
  }

 private:
  int64_t stride_;
  std::vector<double> wide_;
  std::vector<float> narrow_;
};

}  // namespace
}  // namespace pwlu
