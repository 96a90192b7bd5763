// PWLU's kernels for the elements of one channel.
#pragma once

#include "pwlu_sums.h"

namespace {

// Computes y left of B_L, between the bounds and right of B_R for every x, so only the N inner bins are looked up.
template <int Registers, typename T>
void forward_row(const T* x, T* y, int64_t n, const PwluFunction<float>& f) {
  const int num_intervals = f.parameters.num_intervals;
  const Table<Registers> value(f.value + 1), slope(f.slope + 1);
  const Vec left(f.line.left), left_value(f.value[0]), left_slope(f.slope[0]);
  const Vec right(f.line.right), right_value(f.value[num_intervals + 1]), right_slope(f.slope[num_intervals + 1]);
  const Vec length(f.line.length), middle(f.line.middle), scale(f.line.scale), last(f.line.last - 0.5f), zero(0.0f);
  Vec trap(0.0f);  // becomes NaN at the first y that is not finite
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

// Locates x: the columns in the channel's tables, and the distances from the centers.
class RowLocator {
 public:
  explicit RowLocator(const Line<float>& line)
      : left_(line.left),
        right_(line.right),
        length_(line.length),
        middle_(line.middle),
        scale_(line.scale),
        last_inner_(line.last - 1),
        last_(line.last),
        minus_one_(-1.0f) {}

  struct Place {
    Index column;
    Vec distance;
  };
  PWLU_INLINE Place operator()(Vec x) const {
    const Vec last = where_negative(x - right_, last_inner_, last_);
    const Vec k = min(max(floor((x - left_) * scale_), minus_one_), last);
    return {Index(k - minus_one_), x - min(max(fma(k, length_, middle_), left_), right_)};
  }

 private:
  const Vec left_, right_, length_, middle_, scale_, last_inner_, last_, minus_one_;
};

template <int Registers, typename T>
void backward_row_of_x(const T* grad, const T* x, T* grad_x, int64_t n, const PwluFunction<float>& f) {
  const Table<Registers> slope(f.slope);
  const RowLocator locate(f.line);
  for_vectors(n, [&](int64_t i, int count) {
    store(load(grad + i, count) * slope[locate(load(x + i, count)).column], grad_x + i, count);
  });
}

// The moments and, if kX is set, the gradient of x.
template <int Registers, bool kX, typename T>
void backward_row(const T* grad, const T* x, T* grad_x, int64_t n, const PwluFunction<float>& f, Moments moments) {
  const Table<Registers> slope(f.slope);
  const RowLocator locate(f.line);
  PwluBinSums sums(Vec::kSize, f.bins(), true);
  const Index lanes = Index::lanes(sums.stride());
  constexpr int64_t kStretch = PwluBinSums::kStretch * Vec::kSize;
  static_assert(PwluBinSums::kStretch <= PwluBinSums::kSlots);
  for (int64_t start = 0; start < n; start += kStretch) {
    const int64_t size = std::min(kStretch, n - start);
    for_vectors(size, [&](int64_t i, int count) {
      // g is 0 beyond the end and adds nothing
      const Vec xv = load(x + start + i, count), g = load(grad + start + i, count);
      const auto place = locate(xv);
      if constexpr (kX) store(g * slope[place.column], grad_x + start + i, count);
      sums.put(i / Vec::kSize, place.column + lanes, g, g * place.distance);
    });
    sums.add((size + Vec::kSize - 1) / Vec::kSize);
    if (sums.take(moments)) continue;
    backward_carefully(grad + start, x + start, kX ? grad_x + start : nullptr, size, 1, f, &moments);
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
  const int64_t padding = (Vec::kSize - n % Vec::kSize) % Vec::kSize;  // the zeros that were also added
  total.sum += padding * shift;
  total.square -= padding * shift * shift;
  return total;
}

// Calls run(constant) with the number of registers that hold a table of this size, or 0 for a lookup in memory.
template <typename Run>
void with_registers(int size, const Run& run) {
  const int registers = (size + Vec::kSize - 1) / Vec::kSize;
  if constexpr (kMaxRegisters >= 1) {
    if (registers == 1) return run(std::integral_constant<int, 1>());
  }
  if constexpr (kMaxRegisters >= 2) {
    if (registers == 2) return run(std::integral_constant<int, 2>());
  }
  if constexpr (kMaxRegisters >= 3) {
    if (registers == 3) return run(std::integral_constant<int, 3>());
  }
  run(std::integral_constant<int, 0>());
}

template <typename T>
void forward_any_row(const T* x, T* y, int64_t n, const PwluFunction<float>& f) {
  if (!f.fits) return forward_carefully(x, y, n, 1, f, true);
  with_registers(f.parameters.num_intervals, [&](auto registers) { forward_row<registers()>(x, y, n, f); });
}

template <typename T>
void backward_any_row(const T* grad, const T* x, T* grad_x, int64_t n, const PwluFunction<float>& f,
                      const Moments* moments) {
  if (!f.fits) return backward_carefully(grad, x, grad_x, n, 1, f, moments);
  with_registers(f.bins(), [&](auto registers) {
    if (!moments) return backward_row_of_x<registers()>(grad, x, grad_x, n, f);
    if (!grad_x) return backward_row<registers(), false>(grad, x, grad_x, n, f, *moments);
    backward_row<registers(), true>(grad, x, grad_x, n, f, *moments);
  });
}

}  // namespace
