// The kernels that each instruction set provides: all work on one channel's elements in a row.
#pragma once

#include <cstdint>

#include "../pwlu_math.h"

namespace pwlu {

// 16-bit types, by their bits.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Sums over a row of x - shift and of its squares. With a shift near the mean they lose nothing to cancellation.
struct RowSums {
  double sum, square;

  RowSums& operator+=(RowSums other) {
    sum += other.sum;
    square += other.square;
    return *this;
  }
};

// A row's kernels for elements of type T, computed in R.
template <typename T, typename R>
struct RowKernels {
  void (*forward)(const T* x, T* y, int64_t n, const Line<R>& line);
  // Adds to the moments.
  void (*backward)(const T* grad, const T* x, T* grad_x, int64_t n, const Line<R>& line, Moments moments);
  RowSums (*relu_sums)(const T* x, T* y, int64_t n, double shift);
};

// Copies between a tile of [rows, channels] in memory, with row_stride elements from row to row, and a scratch
// [channels, tile_rows] in which each channel is a row.
template <typename T>
struct TileKernels {
  void (*gather)(const T* from, int64_t row_stride, int rows, int channels, float* scratch, int tile_rows);
  void (*scatter)(const float* scratch, int tile_rows, int rows, int channels, T* to, int64_t row_stride);
};

struct Kernels {
  const char* name;
  RowKernels<float, float> f32;
  RowKernels<BFloat16, float> bf16;
  RowKernels<Half, float> f16;
  RowKernels<double, double> f64;
  TileKernels<float> tile_f32;
  TileKernels<BFloat16> tile_bf16;
  TileKernels<Half> tile_f16;
};

const Kernels& avx512_kernels();  // these two on x86-64 alone
const Kernels& avx2_kernels();
const Kernels& baseline_kernels();

}  // namespace pwlu
