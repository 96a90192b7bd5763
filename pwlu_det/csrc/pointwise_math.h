// The formulas of the pointwise activations, for a number type V: float, double or a vector of floats.
//
// Each has forward(x, p) = y, where p holds a channel's parameters in the order of the op's arguments, and
// backward(x, p, d), which returns dy/dx and writes dy/dp to d. kSize is the number of parameters. A formula with a
// variable number of parameters has a kSize of 0 and is constructed by of_size(size). Its member type Usual is the
// formula for the most common number, which is faster because the number is known at compile time.
//
// V supports + - * / and the functions that are defined here for float and double.
#pragma once

#include <cmath>
#include <type_traits>

#ifdef __CUDACC__
#define PWLU_MATH __host__ __device__ __forceinline__
#else
#define PWLU_MATH inline __attribute__((always_inline))
#endif

namespace pwlu {
namespace {

using std::fma;

// min and max return the second argument if either is NaN, like the processor's own instructions.
template <typename V>
PWLU_MATH std::enable_if_t<std::is_floating_point_v<V>, V> min(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
PWLU_MATH std::enable_if_t<std::is_floating_point_v<V>, V> max(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
PWLU_MATH std::enable_if_t<std::is_floating_point_v<V>, V> abs(V a) {
  return a < V(0) ? -a : a;
}
// a if c > 0, else b
template <typename V>
PWLU_MATH std::enable_if_t<std::is_floating_point_v<V>, V> where_positive(V c, V a, V b) {
  return c > V(0) ? a : b;
}

// sigmoid(z), and its derivative without cancellation.
template <typename V>
struct Sigmoid {
  V value, slope;
};
template <typename V>
PWLU_MATH std::enable_if_t<std::is_floating_point_v<V>, Sigmoid<V>> sigmoid(V z) {
  const V e = std::exp(-abs(z)), larger = V(1) / (V(1) + e);
  return {z > V(0) ? larger : e * larger, e * larger * larger};
}

template <typename V>
PWLU_MATH V sign(V x) {
  const V zero(0.0f);
  return where_positive(x, V(1.0f), where_positive(zero - x, V(-1.0f), zero));
}

template <typename V>
PWLU_MATH std::enable_if_t<std::is_floating_point_v<V>, V> times_sigmoid(V u, V z) {
  return u * sigmoid(z).value;
}

template <typename V>
PWLU_MATH V relu(V x) {
  return max(V(0.0f), x);
}

struct Prelu {  // slope
  static constexpr int kSize = 1;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    return where_positive(x, x, p[0] * x);
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    d[0] = min(V(0.0f), x);
    return where_positive(x, V(1.0f), p[0]);
  }
};

// The derivatives of y = u * sigmoid(z) + p2 x with respect to u = (p1 - p2) x and to z = beta u.
template <typename V>
struct Gate {
  V u, by_u, by_z;
};
template <typename V>
PWLU_MATH Gate<V> gate(V u, V beta) {
  const Sigmoid<V> s = sigmoid(beta * u);
  const V by_z = u * s.slope;
  return {u, fma(beta, by_z, s.value), by_z};
}

struct Swish {  // beta; ACON-A
  static constexpr int kSize = 1;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    return times_sigmoid(x, p[0] * x);
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    const Gate<V> g = gate(x, p[0]);
    d[0] = g.by_z * x;
    return g.by_u;
  }
};

struct AconC {  // p1, p2, beta
  static constexpr int kSize = 3;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    const V u = (p[0] - p[1]) * x;
    return fma(p[1], x, times_sigmoid(u, p[2] * u));
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    const V difference = p[0] - p[1];
    const Gate<V> g = gate(difference * x, p[2]);
    d[0] = x * g.by_u;
    d[1] = x * (V(1.0f) - g.by_u);
    d[2] = g.by_z * g.u;
    return fma(difference, g.by_u, p[1]);
  }
};

struct AconB {  // p, beta: ACON-C with p1 = 1
  static constexpr int kSize = 2;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    const V all[] = {V(1.0f), p[0], p[1]};
    return AconC().forward(x, all);
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    const V all[] = {V(1.0f), p[0], p[1]};
    V by_all[3];
    const V by_x = AconC().backward(x, all, by_all);
    d[0] = by_all[1];
    d[1] = by_all[2];
    return by_x;
  }
};

struct MetaAconPixel {  // p1, p2; beta = sigmoid(x)
  static constexpr int kSize = 2;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    const V all[] = {p[0], p[1], sigmoid(x).value};
    return AconC().forward(x, all);
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    const Sigmoid<V> beta = sigmoid(x);
    const V difference = p[0] - p[1];
    const Gate<V> g = gate(difference * x, beta.value);
    d[0] = x * g.by_u;
    d[1] = x * (V(1.0f) - g.by_u);
    return fma(difference, g.by_u, p[1]) + g.by_z * (beta.slope * g.u);
  }
};

struct Mixture {  // identity_share, relu_share
  static constexpr int kSize = 2;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    return fma(p[0], x, p[1] * relu(x));
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    d[0] = x;
    d[1] = relu(x);
    return p[0] + where_positive(x, p[1], V(0.0f));
  }
};

struct Srelu {  // left, left_slope, right, right_slope
  static constexpr int kSize = 4;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    const V not_right = where_positive(x - p[0], x, fma(p[1], x - p[0], p[0]));
    return where_positive(p[2] - x, not_right, fma(p[3], x - p[2], p[2]));
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    const V zero(0.0f), one(1.0f), from_left = x - p[0], to_right = p[2] - x;
    const auto on_left = [&](V value, V other) {
      return where_positive(to_right, where_positive(from_left, other, value), zero);
    };
    const auto on_right = [&](V value, V other) { return where_positive(to_right, other, value); };
    d[0] = on_left(one - p[1], zero);
    d[1] = on_left(from_left, zero);
    d[2] = on_right(one - p[3], zero);
    d[3] = on_right(x - p[2], zero);
    return on_right(p[3], on_left(p[1], one));
  }
};

// slopes (S), offsets (S); S as a constant, or 0
template <int S = 0>
struct Apl {
  using Usual = Apl<3>;
  static constexpr int kSize = 2 * S;
  int num_pieces = S;
  static PWLU_MATH Apl of_size(int size) { return {size / 2}; }
  PWLU_MATH int count() const { return S ? S : num_pieces; }
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    V y = relu(x);
    for (int s = 0; s < count(); ++s) y = fma(p[s], relu(p[count() + s] - x), y);
    return y;
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    const V zero(0.0f);
    V by_x = where_positive(x, V(1.0f), zero);
    for (int s = 0; s < count(); ++s) {
      const V below = p[count() + s] - x, slope = where_positive(below, p[s], zero);
      d[s] = relu(below);
      d[count() + s] = slope;
      by_x = by_x - slope;
    }
    return by_x;
  }
};

// coefficients (S); S as a constant, or 0
template <int S = 0>
struct Slaf {
  using Usual = Slaf<4>;
  static constexpr int kSize = S;
  int num_coefficients = S;
  static PWLU_MATH Slaf of_size(int size) { return {size}; }
  PWLU_MATH int count() const { return S ? S : num_coefficients; }
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    V y(0.0f);
    for (int j = count() - 1; j >= 0; --j) y = fma(y, x, p[j]);
    return y;
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    V power(1.0f), by_x(0.0f);
    for (int j = 0; j < count(); ++j) {
      d[j] = power;
      if (j + 1 < count()) by_x = fma(V(float(j + 1)) * p[j + 1], power, by_x);
      power = power * x;
    }
    return by_x;
  }
};

// numerator (6), denominator (4): P / Q. In double, x is scaled, as its powers may overflow: with m = max(1, |x|),
// u = x / m and v = 1 / m, P / Q is m * (P / m^5) / (Q / m^4), whose terms never exceed their coefficients. In float,
// m is 1, and results that overflow are computed again in double.
struct Pau {
  static constexpr int kSize = 10;
  template <typename V>
  PWLU_MATH V forward(V x, const V* p) const {
    const Scaled<V> s(x);
    return s.times_m(s.numerator(p) / s.denominator(p));
  }
  template <typename V>
  PWLU_MATH V backward(V x, const V* p, V* d) const {
    const Scaled<V> s(x);
    const V zero(0.0f), one(1.0f), w = abs(s.u), by_q = one / s.denominator(p), ratio = s.numerator(p) * by_q;
    V by_a = s.times_m(by_q), by_b = (zero - ratio) * by_a;  // times u^j and |u|^k
    V slope_of_p = V(5.0f) * p[5], slope_of_q = V(4.0f) * abs(p[9]);
    for (int j = 0; j <= 5; ++j) {
      d[j] = s.times_v(by_a, 5 - j);
      by_a = by_a * s.u;
    }
    for (int j = 4; j >= 1; --j) slope_of_p = fma(slope_of_p, s.u, s.times_v(V(float(j)) * p[j], 5 - j));
    for (int k = 1; k <= 4; ++k) {
      by_b = by_b * w;
      d[5 + k] = sign(p[5 + k]) * s.times_v(by_b, 4 - k);
    }
    for (int k = 3; k >= 1; --k) slope_of_q = fma(slope_of_q, w, s.times_v(V(float(k)) * abs(p[5 + k]), 4 - k));
    return fma(zero - ratio, sign(x) * slope_of_q, slope_of_p) * by_q;
  }

 private:
  template <typename V>
  struct Scaled {
    static constexpr bool kScaled = std::is_same_v<V, double>;
    V u, m, v;
    PWLU_MATH explicit Scaled(V x) : u(x), m(V(1.0f)), v(V(1.0f)) {
      if constexpr (kScaled) {
        m = max(V(1.0f), abs(x));
        v = V(1.0f) / m;
        u = max(V(-1.0f), min(V(1.0f), x));
      }
    }
    PWLU_MATH V times_m(V a) const { return kScaled ? m * a : a; }
    PWLU_MATH V times_v(V a, int times) const {
      if constexpr (kScaled) {
        for (int i = 0; i < times; ++i) a = a * v;
      }
      return a;
    }
    PWLU_MATH V numerator(const V* p) const {
      V sum = p[5];
      for (int j = 4; j >= 0; --j) sum = fma(sum, u, times_v(p[j], 5 - j));
      return sum;
    }
    PWLU_MATH V denominator(const V* p) const {
      const V w = abs(u);
      V sum = abs(p[9]);
      for (int k = 3; k >= 1; --k) sum = fma(sum, w, times_v(abs(p[5 + k]), 4 - k));
      return fma(sum, w, times_v(V(1.0f), 4));
    }
  };
};

// Calls run(formula) with the formula F for this number of parameters.
template <typename F, typename Run>
auto with_size(int size, const Run& run) {
  if constexpr (F::kSize != 0) {
    return run(F{});
  } else {
    using Usual = typename F::Usual;
    return size == Usual::kSize ? run(Usual{}) : run(F::of_size(size));
  }
}

}  // namespace
}  // namespace pwlu
