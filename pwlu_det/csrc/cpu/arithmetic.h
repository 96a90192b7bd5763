// The types of the arithmetic on elements of each dtype, so that one template serves all of them.
#pragma once

#include "types.h"
#include "vectors.h"

namespace {

using pwlu::ChannelParameters;

// Four doubles, with the part of Vec's interface that is needed here.
struct Double {
  typedef double Lanes __attribute__((vector_size(32)));
  static constexpr int kSize = 4;
  Lanes v;

  Double() = default;
  Double(Lanes v) : v(v) {}
  explicit Double(double x) : v{x, x, x, x} {}
  static Double load(const double* p) {
    Lanes v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  void store(double* p) const { std::memcpy(p, &v, sizeof v); }
};

PWLU_INLINE Double operator+(Double a, Double b) { return a.v + b.v; }
PWLU_INLINE Double operator-(Double a, Double b) { return a.v - b.v; }
PWLU_INLINE Double fma(Double a, Double b, Double c) { return a.v * b.v + c.v; }
PWLU_INLINE Double max(Double a, Double b) { return a.v > b.v ? a.v : b.v; }  // b where either is NaN
PWLU_INLINE Double where_positive(Double condition, Double a, Double b) { return condition.v > 0 ? a.v : b.v; }

PWLU_INLINE Double load(const double* p, int count) {
  double padded[Double::kSize] = {};
  std::memcpy(padded, p, count * sizeof(double));
  return Double::load(padded);
}
PWLU_INLINE void store(Double v, double* p, int count) { std::memcpy(p, &v, count * sizeof(double)); }

struct SumsOfDoubles {  // with the interface of DoubleSums
  Double shift, sum{0.0}, square{0.0};
  explicit SumsOfDoubles(const double* shifts) : shift(Double::load(shifts)) {}
  void add(Double a) {
    sum = sum + (a - shift);
    square = fma(a - shift, a - shift, square);
  }
  void store(pwlu::ShiftedSums* lanes) const {
    for (int i = 0; i < Double::kSize; ++i) lanes[i] = {sum.v[i], square.v[i]};
  }
};

// The types of the arithmetic on elements of type T.
template <typename T>
struct Arithmetic {
  using Number = float;
  using V = Vec;
  using Sums = DoubleSums;
  static const float* of(const ChannelParameters& p) { return p.narrow; }
};
template <>
struct Arithmetic<double> {
  using Number = double;
  using V = Double;
  using Sums = SumsOfDoubles;
  static const double* of(const ChannelParameters& p) { return p.wide; }
};

// The first `count` lanes of v, and the other lanes of `rest`.
template <typename V>
PWLU_INLINE V first_lanes(V v, int count, V rest = V(0.0f)) {
  using Number = decltype(v.v[0] + 0);
  struct Ramp {
    Number ones[2 * V::kSize] = {};
    constexpr Ramp() {
      for (int i = 0; i < V::kSize; ++i) ones[i] = 1;
    }
  };
  static constexpr Ramp ramp;
  if (count == V::kSize) return v;
  return where_positive(V::load(ramp.ones + V::kSize - count), v, rest);
}

}  // namespace
