// The row kernels, over whichever vectors the including file has chosen.
#pragma once

#include "kernels.h"

namespace {

using pwlu::Line;
using pwlu::Moments;
using pwlu::RowSums;

// Calls step(from, to) for each whole vector of a row, and once more for what remains, padded with zeros.
template <typename T, typename Step>
inline void for_vectors(int64_t n, const Step& step) {
  int64_t i = 0;
  for (; i + Vec::kSize <= n; i += Vec::kSize) step(i, int(Vec::kSize));
  if (i < n) step(i, int(n - i));
}

template <typename T>
inline Vec load(const T* p, int count) {
  if (count == Vec::kSize) return Vec::load(p);
  T padded[Vec::kSize] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return Vec::load(padded);
}

template <typename T>
inline void store(Vec v, T* p, int count) {
  if (count == Vec::kSize) return v.store(p);
  T padded[Vec::kSize];
  v.store(padded);
  std::memcpy(p, padded, count * sizeof(T));
}

// Looks again, in double, at what is not finite: x may have been too large for float, and a slope of 0 holds.
template <typename T>
void repair_row(const T* x, T* y, int64_t n, const Line<float>& line) {
  for (int64_t i = 0; i < n; ++i) {
    if (std::isfinite(to_float(y[i]))) continue;
    const float xi = to_float(x[i]);
    const float k = pwlu::bin_of(xi, line.left, line.scale, line.last);
    const double distance = double(xi) - pwlu::knot_of(k, line.left, line.length);
    const double slope = line.slope[int(k) + 1], value = line.value[int(k) + 1];
    from_float(float(slope == 0 && distance == distance ? value : value + slope * distance), y[i]);
  }
}

// The function within its bounds, and from there on straight: with x clamped into the bounds only the N inner bins
// have to be looked up.
template <int Registers, typename T>
void forward_row(const T* x, T* y, int64_t n, const Line<float>& line) {
  const int num_intervals = int(line.last);
  const Table<Registers> value(line.value + 1, num_intervals), slope(line.slope + 1, num_intervals);
  const Vec left(line.left), right(line.right), length(line.length), scale(line.scale), zero(0.0f);
  const Vec last(line.last - 0.5f), right_value(line.right_value);
  const Vec minus_left_slope(-line.slope[0]), minus_right_slope(-line.slope[num_intervals + 1]);
  Vec trap(0.0f);  // becomes NaN with the first y that is not finite
  for_vectors<T>(n, [&](int64_t i, int count) {
    const Vec xv = load(x + i, count);
    const Vec inside = min(max(xv, left), right);
    const Index k(min((inside - left) * scale, last));
    const Vec knot = fma(k.to_float(), length, left);
    const Vec inner = fma(slope[k], inside - knot, value[k]);
    const Vec back = inside - xv;  // negative right of B_R, where B_R itself may be rounded
    const Vec start = where_negative(back, right_value, inner);
    const Vec yv = fma(where_negative(back, minus_right_slope, minus_left_slope), back, start);
    trap = fma(yv, zero, trap);
    store(yv, y + i, count);
  });
  if (any_nan(trap)) repair_row(x, y, n, line);
}

typedef float Pair __attribute__((vector_size(8)));
typedef double DoublePair __attribute__((vector_size(16)));

// Sums of g and g * distance by bin. Each lane adds to sums of its own, in float; every few hundred vectors
// these are added up in double. All in a fixed order.
class BinSums {
 public:
  BinSums(int bins, Moments moments) : bins_(bins), moments_(moments), sums_(few_) {
    if (bins > kFew) sums_ = new Pair[size_t(bins) * Vec::kSize];
    clear();
  }
  BinSums(const BinSums&) = delete;
  ~BinSums() {
    flush();
    if (sums_ != few_) delete[] sums_;
  }

  inline void add(const Index& column, Vec g, Vec moment) {
    alignas(64) int32_t columns[Vec::kSize];
    alignas(64) Pair pairs[Vec::kSize];
    column.store(columns);
    interleave(g, moment, reinterpret_cast<float*>(pairs));
#pragma GCC unroll 16
    for (int j = 0; j < Vec::kSize; ++j) sums_[columns[lane_of_pair(j)] * Vec::kSize + j] += pairs[j];
    if (++pending_ == kFlushEvery) flush();
  }

 private:
  static constexpr int kFew = 34, kFlushEvery = 512;

  void clear() {
    for (int i = 0; i < bins_ * Vec::kSize; ++i) sums_[i] = Pair{0, 0};
    pending_ = 0;
  }
  void flush() {
    for (int bin = 0; bin < bins_; ++bin) {
      DoublePair total{0, 0};
      for (int j = 0; j < Vec::kSize; ++j) {
        total += __builtin_convertvector(sums_[bin * Vec::kSize + j], DoublePair);
      }
      moments_.amount[bin] += total[0];
      moments_.moment[bin] += total[1];
    }
    clear();
  }

  int bins_, pending_ = 0;
  Moments moments_;
  alignas(64) Pair few_[kFew * Vec::kSize];
  Pair* sums_;
};

template <int Registers, typename T>
void backward_row(const T* grad, const T* x, T* grad_x, int64_t n, const Line<float>& line, Moments moments) {
  const int bins = int(line.last) + 2;
  const Table<Registers> slope(line.slope, bins);
  const Vec left(line.left), length(line.length), scale(line.scale), last(line.last), minus_one(-1.0f), zero(0.0f);
  BinSums sums(bins, moments);
  for_vectors<T>(n, [&](int64_t i, int count) {
    const Vec xv = load(x + i, count), g = load(grad + i, count);  // beyond the end g is 0: it adds nothing
    const Vec k = min(max(floor((xv - left) * scale), minus_one), last);
    const Vec distance = xv - fma(max(k, zero), length, left);
    const Index column(k - minus_one);
    store(g * slope[column], grad_x + i, count);
    sums.add(column, g, g * distance);
  });
}

template <typename T>
RowSums relu_sums_row(const T* x, T* y, int64_t n, double shift) {
  DoubleSums sums(shift);
  for_vectors<T>(n, [&](int64_t i, int count) {
    const Vec xv = load(x + i, count);
    store(relu(xv), y + i, count);
    sums.add(xv);
  });
  RowSums total = sums.total();
  const int64_t padding = (Vec::kSize - n % Vec::kSize) % Vec::kSize;  // zeros, which were added as well
  total.sum += padding * shift;
  total.square -= padding * shift * shift;
  return total;
}

// Choose by the size of the table where it is looked up.
template <typename T>
void forward_any(const T* x, T* y, int64_t n, const Line<float>& line) {
  const int registers = (int(line.last) + Vec::kSize - 1) / Vec::kSize;
  if constexpr (kMaxRegisters >= 1) {
    if (registers == 1) return forward_row<1>(x, y, n, line);
  }
  if constexpr (kMaxRegisters >= 2) {
    if (registers == 2) return forward_row<2>(x, y, n, line);
  }
  if constexpr (kMaxRegisters >= 3) {
    if (registers == 3) return forward_row<3>(x, y, n, line);
  }
  forward_row<0>(x, y, n, line);
}

template <typename T>
void backward_any(const T* grad, const T* x, T* grad_x, int64_t n, const Line<float>& line, Moments moments) {
  const int registers = (int(line.last) + 2 + Vec::kSize - 1) / Vec::kSize;
  if constexpr (kMaxRegisters >= 1) {
    if (registers == 1) return backward_row<1>(grad, x, grad_x, n, line, moments);
  }
  if constexpr (kMaxRegisters >= 2) {
    if (registers == 2) return backward_row<2>(grad, x, grad_x, n, line, moments);
  }
  if constexpr (kMaxRegisters >= 3) {
    if (registers == 3) return backward_row<3>(grad, x, grad_x, n, line, moments);
  }
  backward_row<0>(grad, x, grad_x, n, line, moments);
}

// --- double, one element at a time ---------------------------------------------------------------

inline void forward_row_f64(const double* x, double* y, int64_t n, const Line<double>& line) {
  for (int64_t i = 0; i < n; ++i) {
    const double k = pwlu::bin_of(x[i], line.left, line.scale, line.last);
    const double distance = x[i] - pwlu::knot_of(k, line.left, line.length);
    const double slope = line.slope[int(k) + 1], value = line.value[int(k) + 1];
    y[i] = slope == 0 && distance == distance ? value : value + slope * distance;
  }
}

inline void backward_row_f64(const double* grad, const double* x, double* grad_x, int64_t n, const Line<double>& line,
                             Moments moments) {
  for (int64_t i = 0; i < n; ++i) {
    const double k = pwlu::bin_of(x[i], line.left, line.scale, line.last);
    const int column = int(k) + 1;
    grad_x[i] = grad[i] * line.slope[column];
    moments.amount[column] += grad[i];
    moments.moment[column] += grad[i] * (x[i] - pwlu::knot_of(k, line.left, line.length));
  }
}

inline RowSums relu_sums_row_f64(const double* x, double* y, int64_t n, double shift) {
  RowSums sums{0, 0};
  for (int64_t i = 0; i < n; ++i) {
    const double shifted = x[i] - shift;
    y[i] = x[i] < 0 ? 0 : x[i];
    sums.sum += shifted;
    sums.square += shifted * shifted;
  }
  return sums;
}

inline pwlu::Kernels row_kernels(const char* name) {
  using pwlu::BFloat16;
  using pwlu::Half;
  pwlu::Kernels kernels{};
  kernels.name = name;
  kernels.f32 = {forward_any<float>, backward_any<float>, relu_sums_row<float>};
  kernels.bf16 = {forward_any<BFloat16>, backward_any<BFloat16>, relu_sums_row<BFloat16>};
  kernels.f16 = {forward_any<Half>, backward_any<Half>, relu_sums_row<Half>};
  kernels.f64 = {forward_row_f64, backward_row_f64, relu_sums_row_f64};
  return kernels;
}

// --- tiles of channels_last, one element at a time -----------------------------------------------

template <typename T>
void gather_tile(const T* from, int64_t row_stride, int rows, int channels, float* scratch, int tile_rows) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < channels; ++c) scratch[c * tile_rows + r] = to_float(from[r * row_stride + c]);
  }
}

template <typename T>
void scatter_tile(const float* scratch, int tile_rows, int rows, int channels, T* to, int64_t row_stride) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < channels; ++c) from_float(scratch[c * tile_rows + r], to[r * row_stride + c]);
  }
}

template <typename T>
constexpr pwlu::TileKernels<T> tile_kernels() {
  return {gather_tile<T>, scatter_tile<T>};
}

}  // namespace
