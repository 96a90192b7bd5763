// PWLU's kernels for channels_last memory: tiles of a few channels are transposed, and the kernels for one channel
// run on the rows of the tiles. Lookups in the table of one channel are permutations of registers; with a channel in
// each lane, they would be loads of single elements.
#pragma once

#include "pwlu_rows.h"

namespace {

// The elements of up to kChannels adjacent channels and kPixels pixels, by channel.
struct Tile {
  // 16 channels in float are a line of the cache. It is used at once: equal strides between rows leave it no place.
  static constexpr int kChannels = 16;
  static constexpr int64_t kPixels = 128;
  static_assert(kChannels % Vec::kSize == 0);

  // `pixels` rows of memory with a stride of `stride` elements between them.
  template <typename T>
  PWLU_INLINE void load(const T* x, int64_t pixels, int64_t stride, int channels) {
    for_squares(pixels, channels, [&](int64_t at, int64_t count, int64_t channel, int width) PWLU_INLINED {
      Vec rows[Vec::kSize];
      for (int64_t i = 0; i < Vec::kSize; ++i) {
        rows[i] = i < count ? ::load(x + (at + i) * stride + channel, width) : Vec(0.0f);
      }
      transpose(rows);
      for (int64_t c = 0; c < Vec::kSize; ++c) rows[c].store(of_channel[channel + c] + at);
    });
  }
  template <typename T>
  PWLU_INLINE void store(T* y, int64_t pixels, int64_t stride, int channels) const {
    for_squares(pixels, channels, [&](int64_t at, int64_t count, int64_t channel, int width) PWLU_INLINED {
      Vec rows[Vec::kSize];
      for (int64_t c = 0; c < Vec::kSize; ++c) rows[c] = Vec::load(of_channel[channel + c] + at);
      transpose(rows);
      for (int64_t i = 0; i < count; ++i) ::store(rows[i], y + (at + i) * stride + channel, width);
    });
  }

  // The space at the end keeps rows from competing for the same places in the cache.
  alignas(64) float of_channel[kChannels][kPixels + 16];

 private:
  // Calls run(pixel, pixels, channel, channels) for parts of Vec::kSize pixels and channels, or less at the ends.
  template <typename F>
  static PWLU_INLINE void for_squares(int64_t pixels, int channels, const F& run) {
    for_vectors(pixels, [&](int64_t at, int count) PWLU_INLINED {
      for_vectors(channels, [&](int64_t channel, int width) PWLU_INLINED { run(at, count, channel, width); });
    });
  }
};

// Calls run(channel, channels, row, rows) for the tiles of a block.
template <typename F>
PWLU_INLINE void for_tiles(int64_t rows, int channels, const F& run) {
  for (int64_t r = 0; r < rows; r += Tile::kPixels) {
    for (int c = 0; c < channels; c += Tile::kChannels) {
      run(c, std::min(Tile::kChannels, channels - c), r, std::min(Tile::kPixels, rows - r));
    }
  }
}

template <typename T>
void forward_block(const T* x, T* y, int64_t rows, int64_t stride, int channels,
                   const PwluFunction<float>* functions) {
  Tile from, to;
  for_tiles(rows, channels, [&](int64_t channel, int count, int64_t row, int64_t size) {
    const int64_t at = row * stride + channel;
    from.load(x + at, size, stride, count);
    for (int c = 0; c < count; ++c) {
      forward_any_row(from.of_channel[c], to.of_channel[c], size, functions[channel + c]);
    }
    to.store(y + at, size, stride, count);
  });
}

template <typename T>
void backward_block(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride, int channels,
                    const PwluFunction<float>* functions, const Moments* moments) {
  Tile incoming, from, to;
  for_tiles(rows, channels, [&](int64_t channel, int count, int64_t row, int64_t size) {
    const int64_t at = row * stride + channel;
    incoming.load(grad + at, size, stride, count);
    from.load(x + at, size, stride, count);
    for (int c = 0; c < count; ++c) {
      backward_any_row(incoming.of_channel[c], from.of_channel[c], grad_x ? to.of_channel[c] : nullptr, size,
                       functions[channel + c], pwlu::advance(moments, channel + c));
    }
    if (grad_x) to.store(grad_x + at, size, stride, count);
  });
}

template <typename T>
void relu_sums_block(const T* x, T* y, int64_t rows, int64_t stride, int channels, const double* shift,
                     ShiftedSums* sums) {
  for_vectors(channels, [&](int64_t c, int count) {
    double shifts[Vec::kSize] = {};
    std::copy_n(shift + c, count, shifts);
    DoubleSums vector_sums(shifts);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec xv = load(x + r * stride + c, count);
      store(relu(xv), y + r * stride + c, count);
      vector_sums.add(xv);
    }
    ShiftedSums lanes[Vec::kSize];
    vector_sums.store(lanes);
    for (int i = 0; i < count; ++i) sums[c + i] += lanes[i];
  });
}

}  // namespace
