// Funnel ReLU's kernels for the vectors of an instruction set.
#pragma once

#include "frelu_rows.h"

namespace {

// The convolution of a strip: sum over k of weight[k] * taps.get(k).
template <typename T>
struct Filter {
  using V = typename Arithmetic<T>::V;
  V weight[9], bias;

  Filter(const Strip<T>& strip, const ChannelParameters& p) : bias(strip.parameter(p, pwlu::kBias)) {
    for (int k = 0; k < 9; ++k) weight[k] = strip.parameter(p, pwlu::kWeight + k);
  }
  PWLU_INLINE V convolve(const typename Window<T>::Taps& taps, int64_t at) const {
    V sum = bias;
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) sum = fma(weight[k], taps.get(k, at), sum);
    return sum;
  }
  PWLU_INLINE V transposed(const typename Window<T>::Taps& taps, int64_t at, V sum) const {
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) sum = fma(weight[k], taps.get(8 - k, at), sum);
    return sum;
  }
};

// The value that is compared with x, and the convolution's gradient from the gradient of that value. In inference,
// the two gradients are equal, and y is compared with x: it is larger if x was not the maximum.
template <typename T>
struct FixedNorm {
  using V = typename Arithmetic<T>::V;
  FixedNorm(const Strip<T>&, const ChannelParameters&) {}
  PWLU_INLINE V rival(V y) const { return y; }
  PWLU_INLINE V to_conv(V g, V) const { return g; }
};

// In training, the batch norm lies between the convolution and the comparison.
template <typename T>
struct BatchNorm {
  using V = typename Arithmetic<T>::V;
  V mean, scale, beta, slope, offset;
  BatchNorm(const Strip<T>& strip, const ChannelParameters& p)
      : mean(strip.parameter(p, pwlu::kMean)),
        scale(strip.parameter(p, pwlu::kScale)),
        beta(strip.parameter(p, pwlu::kBeta)),
        slope(strip.parameter(p, pwlu::kSlope)),
        offset(strip.parameter(p, pwlu::kOffset)) {}
  PWLU_INLINE V rival(V conv) const { return fma(conv - mean, scale, beta); }
  PWLU_INLINE V to_conv(V g, V conv) const { return fma(scale, g, fma(slope, conv - mean, offset)); }
};

template <typename T>
struct Frelu {
  using V = typename Arithmetic<T>::V;
  using Number = typename Arithmetic<T>::Number;

  struct ForwardStrip : Strip<T> {
    Window<T> window;
    double totals[2][V::kSize] = {};

    ForwardStrip(const Strip<T>& strip, const FreluBlock& block) : Strip<T>(strip), window(strip, block) {}
    void fill(const Stretch& stretch, const T* x) {
      Number* to = window[stretch.row];
      this->for_pixels(stretch, [&](int64_t at, int64_t i, Lanes lanes) { load(x + i, lanes).store(to + at); });
    }
  };

  static void inference(const T* x, T* y, const FreluBlock& block, const ChannelParameters& p) {
    auto strips = strips_of<ForwardStrip>(block);
    const auto fill = [&](ForwardStrip& strip, const Stretch& stretch) { strip.fill(stretch, x); };
    for_rows(block, strips, fill, [&](ForwardStrip& strip, const Stretch& stretch) {
      const auto taps = strip.window.around(stretch.row);
      const Filter<T> filter(strip, p);
      strip.for_pixels(stretch, [&](int64_t at, int64_t i, Lanes lanes) {
        store(max(taps.get(4, at), filter.convolve(taps, at)), y + i, lanes);
      });
    });
  }

  // Adds the sums of conv - shift and of its square to `sums`, [channels, 2].
  static void convolve(const T* x, T* conv, const FreluBlock& block, const ChannelParameters& p, double* sums) {
    auto strips = strips_of<ForwardStrip>(block);
    const auto fill = [&](ForwardStrip& strip, const Stretch& stretch) { strip.fill(stretch, x); };
    for_rows(block, strips, fill, [&](ForwardStrip& strip, const Stretch& stretch) {
      const auto taps = strip.window.around(stretch.row);
      const Filter<T> filter(strip, p);
      const V shift = strip.parameter(p, pwlu::kShift);
      double shifts[V::kSize];
      for (int lane = 0; lane < V::kSize; ++lane) shifts[lane] = shift.v[lane];
      typename Arithmetic<T>::Sums own(shifts);
      strip.for_pixels(stretch, [&](int64_t at, int64_t i, Lanes lanes) {
        const V value = rounded<T>(filter.convolve(taps, at));
        store(value, conv + i, lanes);
        own.add(first_lanes(value, lanes.count, shift));  // unused lanes add nothing
      });
      pwlu::ShiftedSums by_lane[V::kSize];
      own.store(by_lane);
      for (int lane = 0; lane < V::kSize; ++lane) {
        strip.totals[0][lane] += by_lane[lane].sum;
        strip.totals[1][lane] += by_lane[lane].square;
      }
    });
    for (const auto& strip : strips) strip.template add_totals<2>(strip.totals, sums);
  }

  static void normalise(const T* x, const T* conv, T* y, const FreluBlock& block, const ChannelParameters& p) {
    for_block<T>(block, [&](const Strip<T>& strip, const Stretch& stretch) {
      const BatchNorm<T> norm(strip, p);
      strip.for_pixels(stretch, [&](int64_t, int64_t i, Lanes lanes) {
        store(max(load(x + i, lanes), norm.rival(load(conv + i, lanes))), y + i, lanes);
      });
    });
  }

  // Adds the sums of the norm's gradient g and of g * (conv - mean) to `sums`, [channels, 2].
  static void norm_sums(const T* grad, const T* x, const T* conv, const FreluBlock& block, const ChannelParameters& p,
                        double* sums) {
    for_block<T>(block, [&](const Strip<T>& strip, const Stretch& stretch) {
      const BatchNorm<T> norm(strip, p);
      double totals[2][V::kSize] = {};
      strip.template sum_pixels<2>(stretch, totals, [&](int64_t, int64_t i, Lanes lanes, V* own) {
        const V kept = load(conv + i, lanes), lead = norm.rival(kept) - load(x + i, lanes);
        const V g = where_positive(lead, load(grad + i, lanes), V(Number(0)));
        own[0] = own[0] + g;
        own[1] = fma(g, kept - norm.mean, own[1]);
      });
      strip.template add_totals<2>(totals, sums);
    });
  }

  struct BackwardStrip : Strip<T> {
    Window<T> to_conv, to_x;  // gradients; that of x is nonzero only where x was the maximum
    double totals[10][V::kSize] = {};

    BackwardStrip(const Strip<T>& strip, const FreluBlock& block)
        : Strip<T>(strip), to_conv(strip, block), to_x(strip, block) {}
    template <typename Norm>
    void fill(const Stretch& stretch, const T* grad, const T* x, const T* kept, const Norm& norm) {
      Number *by_conv = to_conv[stretch.row], *by_x = to_x[stretch.row];
      const V zero(Number(0));
      this->for_pixels(stretch, [&](int64_t at, int64_t i, Lanes lanes) {
        const V own = load(kept + i, lanes), lead = norm.rival(own) - load(x + i, lanes), g = load(grad + i, lanes);
        first_lanes(norm.to_conv(where_positive(lead, g, zero), own), lanes.count).store(by_conv + at);
        where_positive(lead, zero, g).store(by_x + at);
      });
    }
  };

  // `kept` is the argument of Norm::rival. Adds the gradients of the nine weights and of the bias to `sums`,
  // [channels, 10]. Either grad_x or sums may be null.
  template <typename Norm>
  static void backward(const T* grad, const T* x, const T* kept, T* grad_x, const FreluBlock& block,
                       const ChannelParameters& p, double* sums) {
    auto strips = strips_of<BackwardStrip>(block);
    const auto fill = [&](BackwardStrip& strip, const Stretch& stretch) {
      strip.fill(stretch, grad, x, kept, Norm(strip, p));
    };
    for_rows(block, strips, fill, [&](BackwardStrip& strip, const Stretch& stretch) {
      const auto taps = strip.to_conv.around(stretch.row);
      const Number* to_x = strip.to_x[stretch.row];
      const Filter<T> filter(strip, p);
      if (grad_x) {
        strip.for_pixels(stretch, [&](int64_t at, int64_t i, Lanes lanes) {
          store(filter.transposed(taps, at, V::load(to_x + at)), grad_x + i, lanes);
        });
      }
      if (!sums) return;
      strip.template sum_pixels<10>(stretch, strip.totals, [&](int64_t at, int64_t i, Lanes lanes, V* own) {
        const V xv = load(x + i, lanes);
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) own[k] = fma(xv, taps.get(8 - k, at), own[k]);
        own[9] = own[9] + taps.get(4, at);
      });
    });
    for (const auto& strip : strips) {
      if (sums) strip.template add_totals<10>(strip.totals, sums);
    }
  }

 private:
  template <typename Own>
  static std::vector<Own> strips_of(const FreluBlock& block) {
    std::vector<Own> strips;  // holds no SIMD vectors, which would need alignment
    for_strips<T>(block, [&](const Strip<T>& strip) { strips.emplace_back(strip, block); });
    return strips;
  }
};

template <typename T>
constexpr pwlu::FreluDtype<T> frelu_dtype() {
  using Own = Frelu<T>;
  return {Own::inference, Own::template backward<FixedNorm<T>>, Own::convolve, Own::normalise,
          Own::norm_sums, Own::template backward<BatchNorm<T>>};
}

constexpr pwlu::FreluKernels frelu_kernels() {
  return {frelu_dtype<float>(), frelu_dtype<BFloat16>(), frelu_dtype<Half>(), frelu_dtype<double>()};
}

}  // namespace
