// Vectors of 8 floats in plain C++, for processors without AVX2; the compiler makes of them what it can.
#pragma once

#include "convert.h"

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

inline Vec operator-(Vec a, Vec b) { PWLU_LANES(a.v[i] - b.v[i]); }
inline Vec operator*(Vec a, Vec b) { PWLU_LANES(a.v[i] * b.v[i]); }
inline Vec fma(Vec a, Vec b, Vec c) { PWLU_LANES(std::fma(a.v[i], b.v[i], c.v[i])); }
inline Vec floor(Vec a) { PWLU_LANES(std::floor(a.v[i])); }
inline Vec max(Vec a, Vec b) { PWLU_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }  // b where a is NaN
inline Vec min(Vec a, Vec b) { PWLU_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
// max(a, 0) that keeps NaN
inline Vec relu(Vec a) { PWLU_LANES(a.v[i] < 0 ? 0 : a.v[i]); }
inline Vec where_negative(Vec condition, Vec a, Vec b) { PWLU_LANES(std::signbit(condition.v[i]) ? a.v[i] : b.v[i]); }
inline bool any_nan(Vec a) {
  bool any = false;
  for (float f : a.v) any |= f != f;
  return any;
}

// Sums of a - shift, and of its squares, in double.
struct DoubleSums {
  double shift, sum[Vec::kSize] = {}, square[Vec::kSize] = {};
  explicit DoubleSums(double shift) : shift(shift) {}
  void add(Vec a) {
    for (int i = 0; i < Vec::kSize; ++i) {
      const double shifted = a.v[i] - shift;
      sum[i] += shifted;
      square[i] += shifted * shifted;
    }
  }
  pwlu::RowSums total() const {
    pwlu::RowSums all{0, 0};
    for (int i = 0; i < Vec::kSize; ++i) all.sum += sum[i], all.square += square[i];
    return all;
  }
};

// Columns of a table, by lane.
struct Index {
  int32_t v[Vec::kSize];
  explicit Index(Vec k) {
    for (int i = 0; i < Vec::kSize; ++i) v[i] = int32_t(k.v[i]);  // rounds towards 0
  }
  Vec to_float() const { PWLU_LANES(float(v[i])); }
  void store(int32_t* p) const { std::memcpy(p, v, sizeof v); }
};

// A table of `size` entries. Registers is how many vectors hold it; 0 is any number, in memory.
template <int Registers>
struct Table {
  const float* p;
  Table(const float* p, int) : p(p) {}
  Vec operator[](const Index& index) const { PWLU_LANES(p[index.v[i]]); }
};
constexpr int kMaxRegisters = 0;

// a0 b0 a1 b1 ...
inline void interleave(Vec a, Vec b, float* p) {
  for (int i = 0; i < Vec::kSize; ++i) p[2 * i] = a.v[i], p[2 * i + 1] = b.v[i];
}
constexpr int lane_of_pair(int j) { return j; }

#undef PWLU_LANES

}  // namespace
