// Distributes images over threads for a 3x3 stencil.
//
// A thread processes strips of one channel from top to bottom. A strip is kColumns adjacent columns of up to
// kStripRows rows. The pixels around it, which are also read, are in the L1 cache because of the neighboring threads.
// The threads of a block are next to each other in one channel (contiguous) or in kLanes channels (channels last), so
// that a warp accesses adjacent memory. As with the items of items.cuh, the work of a block depends only on the
// shape.
#pragma once

#include "device.cuh"
#include "frelu_launch.h"
#include "sums.cuh"

namespace pwlu {

constexpr int kColumns = 2, kStripRows = 32;

template <int kLanesOfBlock>
class Strips {
 public:
  static constexpr int kLanes = kLanesOfBlock, kSide = kThreads / kLanes;

  explicit Strips(const Images& images)
      : channels_(images.channels),
        tiles_(unsigned((channels_ + kLanes - 1) / kLanes)),
        height_(unsigned(images.height)),
        width_(unsigned(images.width)),
        across_((width_ + kColumns - 1) / kColumns) {
    constexpr int64_t kElements = 64;  // per thread, approximately: few enough to be summed in float
    const int64_t parts = (images.height + kStripRows - 1) / kStripRows;
    rows_ = unsigned((images.height + parts - 1) / parts);
    down_ = (height_ + rows_ - 1) / rows_;
    strips_ = images.batch * down_ * across_;
    rounds_ = unsigned(kElements / (kColumns * rows_));
    if (rounds_ < 1) rounds_ = 1;
  }
  bool fits() const { return strips_ < int64_t(1) << 31; }
  __host__ __device__ int64_t channels() const { return channels_; }
  __host__ __device__ int64_t items_of_channel() const { return (strips_ + kSide * rounds_ - 1) / (kSide * rounds_); }
  int64_t items() const { return items_of_channel() * tiles_; }

  // The strides of a pixel, of a row and of a channel.
  __device__ int64_t pixel() const { return kLanes == 1 ? 1 : channels_; }
  __device__ int64_t row() const { return width_ * pixel(); }
  __host__ __device__ int64_t plane() const { return kLanes == 1 ? int64_t(height_) * width_ : 1; }

  // The part of a thread.
  __device__ int64_t channel() const { return int64_t(blockIdx.x % tiles_) * kLanes + threadIdx.x % kLanes; }
  __device__ bool active() const { return channel() < channels_; }
  __device__ unsigned index() const { return blockIdx.x / tiles_; }  // of the item, in its channel
  // Adds up the threads' sums and stores them: [channel][sum][item].
  template <int kSums>
  __device__ void store(const double (&own)[kSums], double* sums) const {
    const int64_t n = items_of_channel();
    store_sums<kLanes>(own, active(), sums + channel() * kSums * n + index(), n);
  }

  struct Strip {
    int64_t start;  // offset of its first pixel
    int rows;
    bool above, below;  // whether the image has a row above, a row below,
    bool left;          // and a column to the left of the strip
    unsigned columns;   // number of columns of the image from the strip's first one on

    __device__ bool has_row(int row) const { return row < 0 ? above : row < rows || below; }  // row is in [-1, rows]
    __device__ bool has(int column) const { return column < 0 ? left : column == 0 || unsigned(column) < columns; }
  };

  template <typename F>
  __device__ __forceinline__ void for_each(const F& run) const {
    if (!active()) return;
    const unsigned first = index() * rounds_ * kSide + threadIdx.x / kLanes;
    for (unsigned round = 0; round < rounds_; ++round) {
      const unsigned number = first + round * kSide;
      if (number >= strips_) return;
      const unsigned rest = number / across_, image = rest / down_;
      const unsigned top = rest % down_ * rows_, column = number % across_ * kColumns;
      Strip strip;
      strip.start = image * channels_ * height_ * width_ + channel() * plane() + top * row() + column * pixel();
      strip.rows = int(min(rows_, height_ - top));
      strip.above = top > 0;
      strip.below = top + rows_ < height_;
      strip.left = column > 0;
      strip.columns = width_ - column;
      run(strip);
    }
  }

 private:
  int64_t channels_, strips_;  // strips per channel
  unsigned tiles_, height_, width_, across_, down_, rows_, rounds_;
};

// Calls load(offset, row) for the rows of the image that a 3x3 stencil needs, and use(offset, above, own, below) for
// each row of the strip, from top to bottom. A Row outside the image is all zeros.
template <typename Row, typename Strip, typename Load, typename Use>
__device__ __forceinline__ void for_rows(const Strip& strip, int64_t step, const Load& load, const Use& use) {
  Row above = {}, own, below;
  int64_t at = strip.start;
  if (strip.above) load(at - step, above);
  load(at, own);
  const int inner = strip.rows - !strip.below;
#pragma unroll 3  // so that no row is copied
  for (int r = 0; r < inner; ++r, at += step) {
    load(at + step, below);
    use(at, above, own, below);
    above = own;
    own = below;
  }
  if (!strip.below) use(at, above, own, Row{});
}

// The pixels of a strip in one row, with a neighbor on both sides.
template <typename R>
using Pixels = R[kColumns + 2];

// Calls use(k, tap) for the 3x3 pixels around a column.
template <typename R, typename Use>
__device__ __forceinline__ void for_taps(const Pixels<R>& above, const Pixels<R>& own, const Pixels<R>& below,
                                         int column, const Use& use) {
#pragma unroll
  for (int c = 0; c < 3; ++c) use(c, above[column + c]);
#pragma unroll
  for (int c = 0; c < 3; ++c) use(3 + c, own[column + c]);
#pragma unroll
  for (int c = 0; c < 3; ++c) use(6 + c, below[column + c]);
}

// The convolution of all channels: [channel][9] and [channel].
template <typename R>
struct ConvolutionArrays {
  const R *weight, *bias;

  explicit ConvolutionArrays(const Convolution& c)
      : weight(static_cast<const R*>(c.weight)), bias(static_cast<const R*>(c.bias)) {}
};

// The convolution of one channel.
template <typename R>
struct Filter {
  R weight[9], bias;

  __device__ Filter(const ConvolutionArrays<R>& arrays, int64_t channel) : bias(arrays.bias[channel]) {
#pragma unroll
    for (int k = 0; k < 9; ++k) weight[k] = arrays.weight[channel * 9 + k];
  }
  __device__ __forceinline__ R convolve(const Pixels<R>& above, const Pixels<R>& own, const Pixels<R>& below,
                                        int column) const {
    R sum = bias;
    for_taps(above, own, below, column, [&](int k, R tap) { sum = fma(weight[k], tap, sum); });
    return sum;
  }
  __device__ __forceinline__ R transposed(const Pixels<R>& above, const Pixels<R>& own, const Pixels<R>& below,
                                          int column, R sum) const {
    for_taps(above, own, below, column, [&](int k, R tap) { sum = fma(weight[8 - k], tap, sum); });
    return sum;
  }
};

}  // namespace pwlu
