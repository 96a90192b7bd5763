// The kernels of Funnel ReLU.
//
// A vector's lanes are neighbours in a row of one channel, or (channels last) channels of one pixel. Rows come as
// numbers that are computed with, with zeros around the image, into a window of three: there the pixels to the left
// and right are one element, or one vector, away. So one code does for both layouts, all dtypes and all borders.
#pragma once

#include "vectors.h"

namespace {

using pwlu::ChannelParameters;
using pwlu::FreluBlock;

// Four doubles with as much of the interface of Vec as is needed here.
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

// What elements of type T are computed in.
template <typename T>
struct Arithmetic {
  using Number = float;
  using V = Vec;
  static const float* of(const ChannelParameters& p) { return p.narrow; }
};
template <>
struct Arithmetic<double> {
  using Number = double;
  using V = Double;
  static const double* of(const ChannelParameters& p) { return p.wide; }
};

// The vector with zeros from lane `count` on.
template <typename V>
PWLU_INLINE V first_lanes(V v, int count) {
  if (count == V::kSize) return v;
  decltype(v.v[0] + 0) lanes[V::kSize];
  v.store(lanes);
  return load(lanes, count);
}

// One channel, or (channels last) as many as there are lanes in a vector.
template <typename T>
struct Strip {
  using Number = typename Arithmetic<T>::Number;
  using V = typename Arithmetic<T>::V;
  static constexpr int64_t kVectorsAtOnce = 128;  // a sum runs over in its own type, before it is added up in double

  int channel;     // the first of them, within the block
  int channels;    // in use
  int64_t stride;  // from pixel to pixel in memory; 1 means one channel

  bool has_one_channel() const { return stride == 1; }
  int64_t step() const { return has_one_channel() ? 1 : V::kSize; }  // from pixel to pixel in a window

  V parameter(const ChannelParameters& p, int row) const {
    const Number* values = Arithmetic<T>::of(p) + row * p.stride + channel;
    return has_one_channel() ? V(*values) : V::load(values);
  }

  // Calls run(at, from, count) for each vector of the pixels [begin, end) of a row: it is at `at` in a window, at
  // `from` in memory, and `count` lanes are in use.
  template <typename F>
  PWLU_INLINE void for_pixels(int64_t begin, int64_t end, const F& run) const {
    const int64_t size = has_one_channel() ? V::kSize : 1, full = has_one_channel() || channels == V::kSize;
    int64_t i = begin;
    for (; full && i + size <= end; i += size) run(i * step(), i * stride, int(V::kSize));
    for (; i < end; i += size) run(i * step(), i * stride, has_one_channel() ? int(end - i) : channels);
  }

  // The same for run(at, from, count, sums), which adds to N vectors of sums; they are added to totals, by lane.
  template <int N, typename F>
  PWLU_INLINE void sum_pixels(int64_t width, double (*totals)[V::kSize], const F& run) const {
    const int64_t part = kVectorsAtOnce * (has_one_channel() ? V::kSize : 1);
    for (int64_t begin = 0; begin < width; begin += part) {
      V sums[N];
      for (int n = 0; n < N; ++n) sums[n] = V(Number(0));
      for_pixels(begin, std::min(width, begin + part),
                 [&](int64_t at, int64_t from, int count) { run(at, from, count, sums); });
      for (int n = 0; n < N; ++n) {
        Number lanes[V::kSize];
        sums[n].store(lanes);
        for (int lane = 0; lane < V::kSize; ++lane) totals[n][lane] += lanes[lane];
      }
    }
  }

  // Adds the totals of N sums to those of the block: [channels, N].
  template <int N>
  void add_totals(const double (*totals)[V::kSize], double* sums) const {
    for (int lane = 0; lane < (has_one_channel() ? V::kSize : channels); ++lane) {
      double* own = sums + (has_one_channel() ? 0 : channel + lane) * N;
      for (int n = 0; n < N; ++n) own[n] += totals[n][lane];
    }
  }
};

// The last three rows of a strip.
template <typename T>
class Window {
 public:
  using Number = typename Arithmetic<T>::Number;
  using V = typename Arithmetic<T>::V;

  Window(const Strip<T>& strip, const FreluBlock& block)
      : step_(strip.step()),
        height_(block.height),
        pitch_(block.width * step_ + 2 * V::kSize),  // a pixel and more on both sides, up to a whole vector
        numbers_(4 * pitch_) {}

  Number* operator[](int64_t row) {
    const int64_t slot = row < 0 || row >= height_ ? 3 : row % 3;  // the fourth is zeros
    return numbers_.data() + slot * pitch_ + V::kSize;
  }

  // The 3x3 pixels around those at `at` of a row.
  struct Taps {
    const Number* rows[3];
    int64_t step;
    PWLU_INLINE V get(int k, int64_t at) const { return V::load(rows[k / 3] + at + (k % 3 - 1) * step); }
  };
  Taps around(int64_t row) { return {{(*this)[row - 1], (*this)[row], (*this)[row + 1]}, step_}; }

 private:
  int64_t step_, height_, pitch_;
  std::vector<Number> numbers_;
};

template <typename T, typename F>
void for_strips(const FreluBlock& block, const F& run) {
  constexpr int kSize = Arithmetic<T>::V::kSize;
  for (int c = 0; c < block.channels; c += kSize) run(Strip<T>{c, std::min(kSize, block.channels - c), block.stride});
}

// Calls run(strip, from, pixels) for stretches of pixels that follow each other in memory, of which `from` is the
// first: a row of each strip, or all rows of one channel.
template <typename T, typename F>
void for_stretches(const FreluBlock& block, const F& run) {
  const bool one_channel = block.stride == 1;
  const int64_t rows = block.end - block.begin, at_once = one_channel ? rows : 1, pixels = at_once * block.width;
  for (int64_t row = 0; row < rows; row += at_once) {
    const int64_t from = (block.begin + row) * block.width * block.stride;
    for_strips<T>(block, [&](const Strip<T>& strip) { run(strip, from + strip.channel, pixels); });
  }
}

// Calls fill(strip, row, from) for each row of the image that the block's rows have to do with, and use(strip, row,
// from) for the block's own as soon as the row below is filled; `from` is where the row begins in memory. All strips
// of a row come before the next row: they share cache lines.
template <typename Strips, typename Fill, typename Use>
PWLU_INLINE void for_rows(const FreluBlock& block, Strips& strips, const Fill& fill, const Use& use) {
  const int64_t pitch = block.width * block.stride;
  for (int64_t row = block.begin - 1; row <= block.end; ++row) {
    for (auto& strip : strips) {
      if (row >= 0 && row < block.height) fill(strip, row, row * pitch + strip.channel);
      if (row > block.begin) use(strip, row - 1, (row - 1) * pitch + strip.channel);
    }
  }
}

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

// How the convolution's gradient follows from that of what was compared with x. In inference they are the same, and
// y is compared with x: it is larger where x lost.
template <typename T>
struct FixedNorm {
  using V = typename Arithmetic<T>::V;
  FixedNorm(const Strip<T>&, const ChannelParameters&) {}
  PWLU_INLINE V rival(V y) const { return y; }
  PWLU_INLINE V to_conv(V g, V) const { return g; }
};

// In training the batch norm stands between.
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
    void fill(int64_t row, const T* x, int64_t width) {
      Number* to = window[row];
      this->for_pixels(0, width, [&](int64_t at, int64_t i, int count) { load(x + i, count).store(to + at); });
    }
  };

  static void inference(const T* x, T* y, const FreluBlock& block, const ChannelParameters& p) {
    auto strips = strips_of<ForwardStrip>(block);
    const auto fill = [&](ForwardStrip& s, int64_t row, int64_t from) { s.fill(row, x + from, block.width); };
    for_rows(block, strips, fill, [&](ForwardStrip& s, int64_t row, int64_t from) {
      const auto taps = s.window.around(row);
      const Filter<T> filter(s, p);
      s.for_pixels(0, block.width, [&](int64_t at, int64_t i, int count) {
        store(max(taps.get(4, at), filter.convolve(taps, at)), y + from + i, count);
      });
    });
  }

  // Adds sums of conv - shift, and of its squares, to sums: [channels, 2].
  static void convolve(const T* x, T* conv, const FreluBlock& block, const ChannelParameters& p, double* sums) {
    auto strips = strips_of<ForwardStrip>(block);
    const auto fill = [&](ForwardStrip& s, int64_t row, int64_t from) { s.fill(row, x + from, block.width); };
    for_rows(block, strips, fill, [&](ForwardStrip& s, int64_t row, int64_t from) {
      const auto taps = s.window.around(row);
      const Filter<T> filter(s, p);
      const V shift = s.parameter(p, pwlu::kShift);
      s.template sum_pixels<2>(block.width, s.totals, [&](int64_t at, int64_t i, int count, V* own) {
        T* to = conv + from + i;
        store(filter.convolve(taps, at), to, count);
        const V shifted = first_lanes(load(to, count) - shift, count);  // as the dtype has it
        own[0] = own[0] + shifted;
        own[1] = fma(shifted, shifted, own[1]);
      });
    });
    for (const auto& s : strips) s.template add_totals<2>(s.totals, sums);
  }

  static void normalise(const T* x, const T* conv, T* y, const FreluBlock& block, const ChannelParameters& p) {
    for_stretches<T>(block, [&](const Strip<T>& strip, int64_t from, int64_t pixels) {
      const BatchNorm<T> norm(strip, p);
      strip.for_pixels(0, pixels, [&](int64_t, int64_t i, int count) {
        store(max(load(x + from + i, count), norm.rival(load(conv + from + i, count))), y + from + i, count);
      });
    });
  }

  // Adds sums of the norm's gradient g, and of g * (conv - mean), to sums: [channels, 2].
  static void norm_sums(const T* grad, const T* x, const T* conv, const FreluBlock& block, const ChannelParameters& p,
                        double* sums) {
    for_stretches<T>(block, [&](const Strip<T>& strip, int64_t from, int64_t pixels) {
      const BatchNorm<T> norm(strip, p);
      double totals[2][V::kSize] = {};
      strip.template sum_pixels<2>(pixels, totals, [&](int64_t, int64_t i, int count, V* own) {
        const V kept = load(conv + from + i, count), lead = norm.rival(kept) - load(x + from + i, count);
        const V g = where_positive(lead, load(grad + from + i, count), V(Number(0)));
        own[0] = own[0] + g;
        own[1] = fma(g, kept - norm.mean, own[1]);
      });
      strip.template add_totals<2>(totals, sums);
    });
  }

  struct BackwardStrip : Strip<T> {
    Window<T> to_conv, to_x;  // gradients, that of x where it won
    double totals[10][V::kSize] = {};

    BackwardStrip(const Strip<T>& strip, const FreluBlock& block)
        : Strip<T>(strip), to_conv(strip, block), to_x(strip, block) {}
    template <typename Norm>
    void fill(int64_t row, const T* grad, const T* x, const T* kept, int64_t width, const Norm& norm) {
      Number *by_conv = to_conv[row], *by_x = to_x[row];
      const V zero(Number(0));
      this->for_pixels(0, width, [&](int64_t at, int64_t i, int count) {
        const V own = load(kept + i, count), lead = norm.rival(own) - load(x + i, count), g = load(grad + i, count);
        first_lanes(norm.to_conv(where_positive(lead, g, zero), own), count).store(by_conv + at);
        where_positive(lead, zero, g).store(by_x + at);
      });
    }
  };

  // `kept` is what the norm compares with. Adds the gradients of the nine weights and of the bias to sums:
  // [channels, 10].
  template <typename Norm>
  static void backward(const T* grad, const T* x, const T* kept, T* grad_x, const FreluBlock& block,
                       const ChannelParameters& p, double* sums) {
    auto strips = strips_of<BackwardStrip>(block);
    const auto fill = [&](BackwardStrip& s, int64_t row, int64_t from) {
      s.fill(row, grad + from, x + from, kept + from, block.width, Norm(s, p));
    };
    for_rows(block, strips, fill, [&](BackwardStrip& s, int64_t row, int64_t from) {
      const auto taps = s.to_conv.around(row);
      const Number* to_x = s.to_x[row];
      const Filter<T> filter(s, p);
      s.for_pixels(0, block.width, [&](int64_t at, int64_t i, int count) {
        store(filter.transposed(taps, at, V::load(to_x + at)), grad_x + from + i, count);
      });
      s.template sum_pixels<10>(block.width, s.totals, [&](int64_t at, int64_t i, int count, V* own) {
        const V xv = load(x + from + i, count);
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) own[k] = fma(xv, taps.get(8 - k, at), own[k]);
        own[9] = own[9] + taps.get(4, at);
      });
    });
    for (const auto& s : strips) s.template add_totals<10>(s.totals, sums);
  }

 private:
  template <typename Own>
  static std::vector<Own> strips_of(const FreluBlock& block) {
    std::vector<Own> strips;  // holds no vectors: those need an alignment
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
