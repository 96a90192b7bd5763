// Vectors of 8 floats in plain C++, for processors without AVX2; the compiler vectorizes them if it can.
#pragma once

#include "../convert.h"

namespace {

struct Vec {
  static constexpr int kSize = 8;
  float v[kSize];

  Vec() = default;
  explicit Vec(float x) {
    for (float& f : v) f = x;
  }
  template <typename T>
  static Vec load(const T* p) {
    Vec r;
    for (int i = 0; i < kSize; ++i) r.v[i] = to_float(p[i]);
    return r;
  }
  template <typename T>
  void store(T* p) const {
    for (int i = 0; i < kSize; ++i) from_float(v[i], p[i]);
  }
};

#define PWLU_LANES(expression)                              \
  Vec r;                                                    \
  for (int i = 0; i < Vec::kSize; ++i) r.v[i] = expression; \
  return r

PWLU_INLINE Vec operator+(Vec a, Vec b) { PWLU_LANES(a.v[i] + b.v[i]); }
PWLU_INLINE Vec operator-(Vec a, Vec b) { PWLU_LANES(a.v[i] - b.v[i]); }
PWLU_INLINE Vec operator*(Vec a, Vec b) { PWLU_LANES(a.v[i] * b.v[i]); }
PWLU_INLINE Vec fma(Vec a, Vec b, Vec c) { PWLU_LANES(std::fma(a.v[i], b.v[i], c.v[i])); }
PWLU_INLINE Vec floor(Vec a) { PWLU_LANES(std::floor(a.v[i])); }
PWLU_INLINE Vec max(Vec a, Vec b) { PWLU_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }  // b if a is NaN
PWLU_INLINE Vec min(Vec a, Vec b) { PWLU_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
// max(a, 0), which keeps NaN
PWLU_INLINE Vec relu(Vec a) { PWLU_LANES(a.v[i] < 0 ? 0 : a.v[i]); }
PWLU_INLINE Vec where_negative(Vec condition, Vec a, Vec b) {
  PWLU_LANES(std::signbit(condition.v[i]) ? a.v[i] : b.v[i]);
}
PWLU_INLINE bool any_nan(Vec a) {
  bool any = false;
  for (float f : a.v) any |= f != f;
  return any;
}

// Sums of a - shift and of its square, in double, by lane.
struct DoubleSums {
  const double* shift;
  double sum[Vec::kSize] = {}, square[Vec::kSize] = {};
  explicit DoubleSums(const double* shifts) : shift(shifts) {}
  void add(Vec a) {
    for (int i = 0; i < Vec::kSize; ++i) {
      const double shifted = a.v[i] - shift[i];
      sum[i] += shifted;
      square[i] += shifted * shifted;
    }
  }
  void store(pwlu::ShiftedSums* lanes) const {
    for (int i = 0; i < Vec::kSize; ++i) lanes[i] = {sum[i], square[i]};
  }
};

// The columns of a table for each lane.
struct Index {
  int32_t v[Vec::kSize];
  Index() = default;
  static Index load(const int32_t* p) {
    Index index;
    std::memcpy(index.v, p, sizeof index.v);
    return index;
  }
  explicit Index(Vec k) {
    for (int i = 0; i < Vec::kSize; ++i) v[i] = int32_t(k.v[i]);  // rounds toward 0
  }
  // 0, stride, 2 * stride, ...
  static Index lanes(int stride) {
    Index lanes;
    for (int i = 0; i < Vec::kSize; ++i) lanes.v[i] = i * stride;
    return lanes;
  }
  Vec to_float() const { PWLU_LANES(float(v[i])); }
  Index times8() const {
    Index scaled;
    for (int i = 0; i < Vec::kSize; ++i) scaled.v[i] = v[i] * 8;
    return scaled;
  }
  void store(uint32_t* p) const { std::memcpy(p, v, sizeof v); }
};
PWLU_INLINE Index operator+(const Index& a, const Index& b) {
  Index sum;
  for (int i = 0; i < Vec::kSize; ++i) sum.v[i] = a.v[i] + b.v[i];
  return sum;
}

// Stores the pairs (a, b) of the lanes in the order of kPairLanes.
PWLU_INLINE void store_pairs(Vec a, Vec b, Pair* p) {
  for (int i = 0; i < Vec::kSize; ++i) p[i] = Pair{a.v[i], b.v[i]};
}
constexpr int kPairLanes[] = {0, 1, 2, 3, 4, 5, 6, 7};

// Loads (a, b) of each lane from the pair at index `at`.
PWLU_INLINE void load_pairs(const float* pairs, const Index& at, Vec& a, Vec& b) {
  for (int i = 0; i < Vec::kSize; ++i) a.v[i] = pairs[2 * at.v[i]], b.v[i] = pairs[2 * at.v[i] + 1];
}

// A table. Registers is the number of vectors that hold it, all of which are read; 0 means any size, in memory.
template <int Registers>
struct Table {
  const float* p;
  explicit Table(const float* p) : p(p) {}
  Vec operator[](const Index& index) const { PWLU_LANES(p[index.v[i]]); }
};
constexpr int kMaxRegisters = 0;

#undef PWLU_LANES

}  // namespace
