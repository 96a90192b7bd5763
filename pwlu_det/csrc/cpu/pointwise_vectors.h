// The kernels of the pointwise activations for the vectors of an instruction set, from one template for all formulas.
#pragma once

#include "../pointwise_math.h"
#include "pointwise_kernels.h"
#include "vectors.h"

namespace {

using pwlu::ChannelParameters;
using pwlu::kMaxParameters;

// e^a = fraction * power. The fraction is a polynomial on [-ln(2) / 2, ln(2) / 2] with an error of 1/40 ulp. The
// power is a power of 2, which is 0 or infinite if e^a is not a normal number.
struct Exponential {
  Vec fraction, power;
};
PWLU_INLINE Exponential exponential(Vec a) {
  a = min(Vec(89.0f), max(Vec(-88.0f), a));
  const Vec shift(0x1.8p23f + 127), shifted = fma(a, Vec(1.44269504f), shift);  // rounds to an integer
  const Vec r = fma(shifted - shift, Vec(-0.693147181f), a), r2 = r * r;
  // 1 + r + r^2 * q(r), with the terms of q in pairs: too few vectors are in flight to hide the latency of one chain.
  const Vec low = fma(Vec(0.16666521f), r, Vec(0.49999994f)), high = fma(Vec(0.0083687175f), r, Vec(0.04166839f));
  const Vec q = fma(fma(Vec(0.0013814598f), r2, high), r2, low);
  return {fma(q, r2, Vec(1.0f) + r), power_of_two(shifted)};
}

PWLU_INLINE pwlu::Sigmoid<Vec> sigmoid(Vec z) {
  const Vec one(1.0f);
  const Exponential e = exponential(Vec(0.0f) - z);
  const Vec value = one / fma(e.fraction, e.power, one);
  return {value, min(Vec(1e38f), e.fraction * e.power) * value * value};
}
PWLU_INLINE Vec times_sigmoid(Vec u, Vec z) {
  const Exponential e = exponential(Vec(0.0f) - z);
  return u / fma(e.fraction, e.power, Vec(1.0f));
}

// The number of vectors that are summed in float before the sum is added up in double.
constexpr int64_t kVectorsAtOnce = 64;

// Elements of one channel, in double: for float64, and for results that were not finite in float.
template <typename F, typename T>
void forward_elements(const F& f, const T* x, T* y, int64_t n, int64_t stride, const ChannelParameters& p,
                      int channel, bool all) {
  double own[kMaxParameters];
  for (int k = 0; k < p.size; ++k) own[k] = p.wide[k * p.stride + channel];
  for (int64_t i = channel; i < channel + n * stride; i += stride) {
    if (all || !std::isfinite(to_float(y[i]))) from_double(f.forward(double(to_float(x[i])), own), y[i]);
  }
}

// Either grad_x or sums may be null.
template <typename F, typename T>
void backward_elements(const F& f, const T* grad, const T* x, T* grad_x, int64_t n, int64_t stride,
                       const ChannelParameters& p, int channel, double* sums) {
  double own[kMaxParameters], by_own[kMaxParameters];
  for (int k = 0; k < p.size; ++k) own[k] = p.wide[k * p.stride + channel];
  for (int64_t i = channel; i < channel + n * stride; i += stride) {
    const double g = to_float(grad[i]), by_x = f.backward(double(to_float(x[i])), own, by_own);
    if (grad_x) from_double(g * by_x, grad_x[i]);
    for (int k = 0; k < p.size && sums; ++k) sums[k] += g * by_own[k];
  }
}

// The kernels of a formula for elements that are computed in float.
template <typename F, typename T>
struct PointwiseVectors {
  // The number of parameters, as a compile-time constant if possible.
  static int size_of(const ChannelParameters& p) { return F::kSize ? F::kSize : p.size; }
  static constexpr int kRoom = F::kSize ? F::kSize : kMaxParameters;

  // Whether the results are finite.
  struct Finite {
    bool x, sums;
  };

  static bool forward_row(const F& f, const T* x, T* y, int64_t n, const ChannelParameters& p) {
    Vec own[kRoom], trap(0.0f);
    for (int k = 0; k < size_of(p); ++k) own[k] = Vec(p.narrow[k * p.stride]);
    for_vectors(n, [&](int64_t i, int count) {
      const Vec yv = f.forward(load(x + i, count), own);
      trap = fma(yv, Vec(0.0f), trap);
      store(yv, y + i, count);
    });
    return !any_nan(trap);
  }

  static bool forward_block(const F& f, const T* x, T* y, int64_t rows, int64_t stride, const ChannelParameters& p) {
    Vec own[kRoom], trap(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      for_vectors(p.channels, [&](int64_t c, int count) {
        for (int k = 0; k < size_of(p); ++k) own[k] = Vec::load(p.narrow + k * p.stride + c);
        const Vec yv = f.forward(load(x + r * stride + c, count), own);
        trap = fma(yv, Vec(0.0f), trap);
        store(yv, y + r * stride + c, count);
      });
    }
    return !any_nan(trap);
  }

  // These two compute the gradient of x, the sums, or both. They add nothing to the sums if any result was not
  // finite. Beyond the end g is 0 and adds nothing.
  template <bool kX, bool kSums>
  static Finite backward_row(const F& f, const T* grad, const T* x, T* grad_x, int64_t n, const ChannelParameters& p,
                             double* sums) {
    const int size = size_of(p);
    Vec own[kRoom], by_own[kRoom], total[kRoom], trap(0.0f), sums_trap(0.0f);
    for (int k = 0; k < size; ++k) own[k] = Vec(p.narrow[k * p.stride]), total[k] = Vec(0.0f);
    for_vectors(n, [&](int64_t i, int count) {
      const Vec g = load(grad + i, count), dx = g * f.backward(load(x + i, count), own, by_own);
      trap = fma(dx, Vec(0.0f), trap);
      if constexpr (kX) store(dx, grad_x + i, count);
      for (int k = 0; k < size && kSums; ++k) total[k] = fma(g, by_own[k], total[k]);
    });
    for (int k = 0; k < size && kSums; ++k) sums_trap = fma(total[k], Vec(0.0f), sums_trap);
    const Finite finite{!any_nan(trap), !any_nan(sums_trap)};
    for (int k = 0; k < size && kSums && finite.x && finite.sums; ++k) {
      float lanes[Vec::kSize];
      total[k].store(lanes);
      for (float lane : lanes) sums[k] += lane;
    }
    return finite;
  }

  template <bool kX, bool kSums>
  static Finite backward_block(const F& f, const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride,
                               const ChannelParameters& p, double* sums) {
    constexpr int kRow = pwlu::kBlockChannels + pwlu::kLanePadding;
    const int size = size_of(p);
    std::vector<float> total(kSums ? size * kRow : 0, 0.0f);
    Vec own[kRoom], by_own[kRoom], trap(0.0f), sums_trap(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      for_vectors(p.channels, [&](int64_t c, int count) {
        for (int k = 0; k < size; ++k) own[k] = Vec::load(p.narrow + k * p.stride + c);
        const int64_t i = r * stride + c;
        const Vec g = load(grad + i, count), dx = g * f.backward(load(x + i, count), own, by_own);
        trap = fma(dx, Vec(0.0f), trap);
        if constexpr (kX) store(dx, grad_x + i, count);
        for (int k = 0; k < size && kSums; ++k) {
          float* sum = total.data() + k * kRow + c;
          fma(g, by_own[k], Vec::load(sum)).store(sum);
        }
      });
    }
    for (float sum : total) sums_trap = fma(Vec(sum), Vec(0.0f), sums_trap);
    const Finite finite{!any_nan(trap), !any_nan(sums_trap)};
    for (int c = 0; c < p.channels && kSums && finite.x && finite.sums; ++c) {
      for (int k = 0; k < size; ++k) sums[c * size + k] += total[k * kRow + c];
    }
    return finite;
  }

  template <bool kX, bool kSums>
  static void backward(const F& f, const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride,
                       const ChannelParameters& p, double* sums) {
    const int64_t part = kVectorsAtOnce * (stride == 1 ? Vec::kSize : 1);
    for (int64_t from = 0; from < rows; from += part) {
      const int64_t at = from * stride, n = std::min(part, rows - from);
      T* const to = pwlu::advance(grad_x, at);
      const Finite finite = stride == 1 ? backward_row<kX, kSums>(f, grad + at, x + at, to, n, p, sums)
                                        : backward_block<kX, kSums>(f, grad + at, x + at, to, n, stride, p, sums);
      if (finite.x && finite.sums) continue;
      // In double. The gradient of x does not depend on whether the sums were finite or requested.
      for (int c = 0; c < p.channels; ++c) {
        backward_elements(f, grad + at, x + at, finite.x ? nullptr : to, n, stride, p, c,
                          pwlu::advance(sums, c * p.size));
      }
    }
  }
};

// The kernels of an activation, as PointwiseDtype describes them.
template <typename F, typename T>
void pointwise_forward(const T* x, T* y, int64_t rows, int64_t stride, const ChannelParameters& p) {
  pwlu::with_size<F>(p.size, [&](const auto& f) {
    bool finite = false;
    if constexpr (!std::is_same_v<T, double>) {
      using Vectors = PointwiseVectors<std::decay_t<decltype(f)>, T>;
      finite =
          stride == 1 ? Vectors::forward_row(f, x, y, rows, p) : Vectors::forward_block(f, x, y, rows, stride, p);
    }
    for (int c = 0; c < p.channels && !finite; ++c) {
      forward_elements(f, x, y, rows, stride, p, c, std::is_same_v<T, double>);
    }
  });
}

template <typename F, typename T>
void pointwise_backward(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride,
                        const ChannelParameters& p, double* sums) {
  pwlu::with_size<F>(p.size, [&](const auto& f) {
    if constexpr (std::is_same_v<T, double>) {
      for (int c = 0; c < p.channels; ++c) {
        backward_elements(f, grad, x, grad_x, rows, stride, p, c, pwlu::advance(sums, c * p.size));
      }
    } else {
      using Vectors = PointwiseVectors<std::decay_t<decltype(f)>, T>;
      if (!sums) return Vectors::template backward<true, false>(f, grad, x, grad_x, rows, stride, p, sums);
      if (!grad_x) return Vectors::template backward<false, true>(f, grad, x, grad_x, rows, stride, p, sums);
      Vectors::template backward<true, true>(f, grad, x, grad_x, rows, stride, p, sums);
    }
  });
}

template <typename F>
constexpr pwlu::PointwiseKernels pointwise_kernels() {
  return {{pointwise_forward<F, float>, pointwise_backward<F, float>},
          {pointwise_forward<F, BFloat16>, pointwise_backward<F, BFloat16>},
          {pointwise_forward<F, Half>, pointwise_backward<F, Half>},
          {pointwise_forward<F, double>, pointwise_backward<F, double>}};
}

constexpr pwlu::AllPointwise all_pointwise() {
#define PWLU_KERNELS(op, F, ...) pointwise_kernels<pwlu::F>(),
  return {PWLU_FORALL_POINTWISE(PWLU_KERNELS)};
#undef PWLU_KERNELS
}

}  // namespace
