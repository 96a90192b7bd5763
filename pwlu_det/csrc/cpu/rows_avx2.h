// The row kernels with AVX2, and tiles transposed in registers.
#pragma once

#include "vec_avx2.h"

#include "rows.h"  // over those vectors

namespace {

inline void transpose_8x8(__m256 r[8]) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// Rows lie far apart, where the processor does not fetch ahead by itself.
constexpr int kRowsAhead = 32;

// Both go by blocks of 8 by 8, and element by element over what is left at the edges.
template <typename T>
void gather_transposing(const T* from, int64_t row_stride, int rows, int channels, float* scratch, int tile_rows) {
  const int whole_rows = rows & ~7, whole_channels = channels & ~7;
  for (int r = 0; r < whole_rows; r += 8) {
    for (int i = 0; i < 8; ++i) __builtin_prefetch(from + (r + kRowsAhead + i) * row_stride);
    for (int c = 0; c < whole_channels; c += 8) {
      __m256 block[8];
      for (int i = 0; i < 8; ++i) block[i] = Vec::load(from + (r + i) * row_stride + c).v;
      transpose_8x8(block);
      for (int i = 0; i < 8; ++i) _mm256_storeu_ps(scratch + (c + i) * tile_rows + r, block[i]);
    }
  }
  gather_tile(from + whole_channels, row_stride, whole_rows, channels - whole_channels,
              scratch + whole_channels * tile_rows, tile_rows);
  gather_tile(from + whole_rows * row_stride, row_stride, rows - whole_rows, channels, scratch + whole_rows,
              tile_rows);
}

template <typename T>
void scatter_transposing(const float* scratch, int tile_rows, int rows, int channels, T* to, int64_t row_stride) {
  const int whole_rows = rows & ~7, whole_channels = channels & ~7;
  for (int r = 0; r < whole_rows; r += 8) {
    for (int i = 0; i < 8; ++i) __builtin_prefetch(to + (r + kRowsAhead + i) * row_stride, 1);
    for (int c = 0; c < whole_channels; c += 8) {
      __m256 block[8];
      for (int i = 0; i < 8; ++i) block[i] = _mm256_loadu_ps(scratch + (c + i) * tile_rows + r);
      transpose_8x8(block);
      for (int i = 0; i < 8; ++i) Vec(block[i]).store(to + (r + i) * row_stride + c);
    }
  }
  scatter_tile(scratch + whole_channels * tile_rows, tile_rows, whole_rows, channels - whole_channels,
               to + whole_channels, row_stride);
  scatter_tile(scratch + whole_rows, tile_rows, rows - whole_rows, channels, to + whole_rows * row_stride,
               row_stride);
}

template <typename T>
constexpr pwlu::TileKernels<T> transposing_kernels() {
  return {gather_transposing<T>, scatter_transposing<T>};
}

}  // namespace
