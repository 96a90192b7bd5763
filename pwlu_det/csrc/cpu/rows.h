// Kernels over the elements of one channel.
#pragma once

#include "vectors.h"

namespace {

// Left of B_L, between the bounds and right of B_R: all three for every x, so only the N inner bins are looked up.
template <int Registers, typename T>
void forward_row(const T* x, T* y, int64_t n, const Function<float>& f) {
  const int num_intervals = f.parameters.num_intervals;
  const Table<Registers> value(f.value + 1), slope(f.slope + 1);
  const Vec left(f.line.left), left_value(f.value[0]), left_slope(f.slope[0]);
  const Vec right(f.line.right), right_value(f.value[num_intervals + 1]), right_slope(f.slope[num_intervals + 1]);
  const Vec length(f.line.length), middle(f.line.middle), scale(f.line.scale), last(f.line.last - 0.5f), zero(0.0f);
  Vec trap(0.0f);  // becomes NaN with the first y that is not finite
  for_vectors(n, [&](int64_t i, int count) {
    const Vec xv = load(x + i, count), from_left = xv - left, from_right = xv - right;
    const Index k(min(max(from_left * scale, zero), last));
    const Vec inner = fma(slope[k], xv - fma(k.to_float(), length, middle), value[k]);
    const Vec not_left = where_negative(from_right, inner, fma(right_slope, from_right, right_value));
    const Vec yv = where_negative(from_left, fma(left_slope, from_left, left_value), not_left);
    trap = fma(yv, zero, trap);
    store(yv, y + i, count);
  });
  if (any_nan(trap)) forward_carefully(x, y, n, 1, f, false);
}

template <int Registers, typename T>
void backward_row(const T* grad, const T* x, T* grad_x, int64_t n, const Function<float>& f, Moments moments) {
  const Table<Registers> slope(f.slope);
  const Vec left(f.line.left), right(f.line.right), length(f.line.length), middle(f.line.middle);
  const Vec scale(f.line.scale), last(f.line.last), minus_one(-1.0f);
  BinSums sums(Vec::kSize, f.bins(), true);
  const Index lanes = Index::lanes(sums.stride());
  constexpr int64_t kStretch = BinSums::kStretch * Vec::kSize;
  static_assert(BinSums::kStretch <= BinSums::kSlots);
  for (int64_t start = 0; start < n; start += kStretch) {
    const int64_t size = std::min(kStretch, n - start);
    for_vectors(size, [&](int64_t i, int count) {
      // beyond the end g is 0: it adds nothing
      const Vec xv = load(x + start + i, count), g = load(grad + start + i, count);
      const Vec k = min(max(floor((xv - left) * scale), minus_one), last);
      const Vec distance = xv - min(max(fma(k, length, middle), left), right);
      const Index column(k - minus_one);
      store(g * slope[column], grad_x + start + i, count);
      sums.put(i / Vec::kSize, column + lanes, g, g * distance);
    });
    sums.add((size + Vec::kSize - 1) / Vec::kSize);
    if (!sums.take(moments)) backward_carefully(grad + start, x + start, grad_x + start, size, 1, f, moments);
  }
}

template <typename T>
ShiftedSums relu_sums_row(const T* x, T* y, int64_t n, double shift) {
  double shifts[Vec::kSize];
  std::fill_n(shifts, Vec::kSize, shift);
  DoubleSums sums(shifts);
  for_vectors(n, [&](int64_t i, int count) {
    const Vec xv = load(x + i, count);
    store(relu(xv), y + i, count);
    sums.add(xv);
  });
  ShiftedSums total{0, 0}, lanes[Vec::kSize];
  sums.store(lanes);
  for (const ShiftedSums& lane : lanes) total += lane;
  const int64_t padding = (Vec::kSize - n % Vec::kSize) % Vec::kSize;  // zeros, which were added as well
  total.sum += padding * shift;
  total.square -= padding * shift * shift;
  return total;
}

// Choose by the size of the table where it is looked up.
template <typename T>
void forward_any(const T* x, T* y, int64_t n, const Function<float>& f) {
  if (!f.fits) return forward_carefully(x, y, n, 1, f, true);
  const int registers = (f.parameters.num_intervals + Vec::kSize - 1) / Vec::kSize;
  if constexpr (kMaxRegisters >= 1) {
    if (registers == 1) return forward_row<1>(x, y, n, f);
  }
  if constexpr (kMaxRegisters >= 2) {
    if (registers == 2) return forward_row<2>(x, y, n, f);
  }
  if constexpr (kMaxRegisters >= 3) {
    if (registers == 3) return forward_row<3>(x, y, n, f);
  }
  forward_row<0>(x, y, n, f);
}

template <typename T>
void backward_any(const T* grad, const T* x, T* grad_x, int64_t n, const Function<float>& f, Moments moments) {
  if (!f.fits) return backward_carefully(grad, x, grad_x, n, 1, f, moments);
  const int registers = (f.bins() + Vec::kSize - 1) / Vec::kSize;
  if constexpr (kMaxRegisters >= 1) {
    if (registers == 1) return backward_row<1>(grad, x, grad_x, n, f, moments);
  }
  if constexpr (kMaxRegisters >= 2) {
    if (registers == 2) return backward_row<2>(grad, x, grad_x, n, f, moments);
  }
  if constexpr (kMaxRegisters >= 3) {
    if (registers == 3) return backward_row<3>(grad, x, grad_x, n, f, moments);
  }
  backward_row<0>(grad, x, grad_x, n, f, moments);
}

}  // namespace
