// How Funnel ReLU's kernels iterate over an image.
//
// The lanes of a vector are adjacent pixels in a row of one channel, or (channels last) channels of one pixel. Rows
// are converted to the compute type, padded with zeros and stored in a window of three rows. In the window, the
// pixels to the left and right are one element, or one vector, away, so the same code works for all layouts, dtypes
// and borders.
#pragma once

#include "arithmetic.h"
#include "frelu_kernels.h"

namespace {

using pwlu::FreluBlock;

// The number of lanes of a vector that are in use, and whether there is room after them: memory that may be read and
// will be written later, so that a whole vector can be loaded or stored.
struct Lanes {
  int count;
  bool room;
};

template <typename T, typename V = typename Arithmetic<T>::V>
PWLU_INLINE V load(const T* p, Lanes lanes) {
  return lanes.count == V::kSize || lanes.room ? first_lanes(V::load(p), lanes.count) : load(p, lanes.count);
}
template <typename T, typename V>
PWLU_INLINE void store(V v, T* p, Lanes lanes) {
  return lanes.count == V::kSize || lanes.room ? v.store(p) : store(v, p, lanes.count);
}

// Rounds to the precision of the dtype.
template <typename T, typename V>
PWLU_INLINE V rounded(V v) {
  if constexpr (std::is_same_v<T, typename Arithmetic<T>::Number>) return v;
  T elements[V::kSize];
  v.store(elements);
  return V::load(elements);
}

// Pixels [begin, end) of a row. The row starts at `start` in memory, and there is room for `room` pixels after `end`.
struct Stretch {
  int64_t row, start, begin, end, room;
};

// One channel, or (channels last) as many as there are lanes in a vector.
template <typename T>
struct Strip {
  using Number = typename Arithmetic<T>::Number;
  using V = typename Arithmetic<T>::V;
  static constexpr int64_t kVectorsAtOnce = 128;  // summed in the compute type before they are added up in double

  int channel;     // the first channel, within the block
  int channels;    // the number of channels in use
  int64_t stride;  // between pixels in memory; 1 means one channel

  bool has_one_channel() const { return stride == 1; }
  int64_t step() const { return has_one_channel() ? 1 : V::kSize; }  // between pixels in a window

  V parameter(const ChannelParameters& p, int row) const {
    const Number* values = Arithmetic<T>::of(p) + row * p.stride + channel;
    return has_one_channel() ? V(*values) : V::load(values);
  }

  // Calls run(at, i, lanes) for each vector of a stretch, which is at `at` in the window's row and at `i` in memory.
  template <typename F>
  PWLU_INLINE void for_pixels(const Stretch& stretch, const F& run) const {
    const int64_t size = has_one_channel() ? V::kSize : 1, start = stretch.start + channel;
    int64_t i = stretch.begin;
    if (has_one_channel() || channels == V::kSize) {
      for (; i + size <= stretch.end; i += size) run(i * step(), start + i * stride, Lanes{V::kSize, true});
    }
    for (; i < stretch.end; i += size) {
      const int count = has_one_channel() ? int(stretch.end - i) : channels;
      run(i * step(), start + i * stride, Lanes{count, stretch.room >= V::kSize - count});
    }
  }

  // The same for run(at, i, lanes, sums), which adds to N vectors of sums. They are then added to the totals, by
  // lane.
  template <int N, typename F>
  PWLU_INLINE void sum_pixels(Stretch stretch, double (*totals)[V::kSize], const F& run) const {
    const int64_t part = kVectorsAtOnce * (has_one_channel() ? V::kSize : 1), end = stretch.end;
    for (; stretch.begin < end; stretch.begin = stretch.end) {
      stretch.end = std::min(end, stretch.begin + part);
      V sums[N];
      for (int n = 0; n < N; ++n) sums[n] = V(Number(0));
      for_pixels(stretch, [&](int64_t at, int64_t i, Lanes lanes) { run(at, i, lanes, sums); });
      for (int n = 0; n < N; ++n) {
        Number lanes[V::kSize];
        sums[n].store(lanes);
        for (int lane = 0; lane < V::kSize; ++lane) totals[n][lane] += lanes[lane];
      }
    }
  }

  // Adds the totals of N sums to those of the block: [channels, N].
  template <int N>
  void add_totals(const double (*totals)[V::kSize], double* sums) const {
    for (int lane = 0; lane < (has_one_channel() ? V::kSize : channels); ++lane) {
      double* own = sums + (has_one_channel() ? 0 : channel + lane) * N;
      for (int n = 0; n < N; ++n) own[n] += totals[n][lane];
    }
  }
};

// The last three rows of a strip.
template <typename T>
class Window {
 public:
  using Number = typename Arithmetic<T>::Number;
  using V = typename Arithmetic<T>::V;

  Window(const Strip<T>& strip, const FreluBlock& block)
      : step_(strip.step()),
        height_(block.height),
        // at least one pixel on both sides, up to a whole vector
        pitch_((block.right - block.left) * step_ + 2 * V::kSize),
        numbers_(4 * pitch_) {}

  Number* operator[](int64_t row) {
    const int64_t slot = row < 0 || row >= height_ ? 3 : row % 3;  // the fourth row is zeros
    return numbers_.data() + slot * pitch_ + V::kSize;
  }

  // The 3x3 neighborhoods of the pixels at `at` of a row.
  struct Taps {
    const Number* rows[3];
    int64_t step;
    PWLU_INLINE V get(int k, int64_t at) const { return V::load(rows[k / 3] + at + (k % 3 - 1) * step); }
  };
  Taps around(int64_t row) { return {{(*this)[row - 1], (*this)[row], (*this)[row + 1]}, step_}; }

 private:
  int64_t step_, height_, pitch_;
  std::vector<Number> numbers_;
};

template <typename T, typename F>
void for_strips(const FreluBlock& block, const F& run) {
  constexpr int kSize = Arithmetic<T>::V::kSize;
  for (int c = 0; c < block.channels; c += kSize) run(Strip<T>{c, std::min(kSize, block.channels - c), block.stride});
}

inline int64_t start_of(const FreluBlock& block, int64_t row) {
  return (row * block.width + block.left) * block.stride;
}

// Calls run(strip, stretch) for all pixels of a block: row by row, or with all rows of one channel as a single row.
template <typename T, typename F>
void for_block(const FreluBlock& block, const F& run) {
  const int64_t rows = block.end - block.begin, at_once = block.stride == 1 ? rows : 1;
  for (int64_t row = block.begin; row < block.end; row += at_once) {
    const Stretch stretch{row, start_of(block, row), 0, at_once * (block.right - block.left), 0};
    for_strips<T>(block, [&](const Strip<T>& strip) { run(strip, stretch); });
  }
}

// Calls fill(strip, stretch) for all pixels of the image that the block depends on, and use(strip, stretch) for each
// row of the block as soon as the row below is filled. It processes all strips of a row before the next row, as they
// share cache lines.
template <typename Strips, typename Fill, typename Use>
PWLU_INLINE void for_rows(const FreluBlock& block, Strips& strips, const Fill& fill, const Use& use) {
  const int64_t columns = block.right - block.left, before = block.left > 0, behind = block.right < block.width;
  const auto room = [&](int64_t row, int64_t last) { return block.stride == 1 ? (last - 1 - row) * block.width : 0; };
  for (int64_t row = block.begin - 1; row <= block.end; ++row) {
    const Stretch below{row, start_of(block, row), -before, columns + behind, room(row, block.height)};
    const Stretch own{row - 1, start_of(block, row - 1), 0, columns, room(row - 1, block.end)};
    for (auto& strip : strips) {
      if (row >= 0 && row < block.height) fill(strip, below);
      if (row > block.begin) use(strip, own);
    }
  }
}

}  // namespace
