// The depthwise convolution: in inference together with the maximum, in training with the statistics of its output.
#pragma once

#include "frelu_strips.cuh"

namespace pwlu {

template <typename R>
struct PixelRow {
  Pixels<R> x;
};

// Calls use(offset, column, x, convolution of x) for each pixel of a strip, including columns beyond the image.
template <typename T, int kLanes, typename Use>
__device__ __forceinline__ void convolve_strip(const Strips<kLanes>& strips,
                                               const typename Strips<kLanes>::Strip& strip,
                                               const Filter<Real<T>>& filter, const T* x, const Use& use) {
  using R = Real<T>;
  const auto load = [&](int64_t at, PixelRow<R>& row) {
#pragma unroll
    for (int c = -1; c <= kColumns; ++c) {
      row.x[c + 1] = strip.has(c) ? to_real((x + at)[c * strips.pixel()]) : R(0);
    }
  };
  for_rows<PixelRow<R>>(strip, strips.row(), load,
                        [&](int64_t at, const auto& above, const auto& own, const auto& below) {
#pragma unroll
                          for (int c = 0; c < kColumns; ++c)
                            use(at, c, own.x[c + 1], filter.convolve(above.x, own.x, below.x, c));
                        });
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocks)
    frelu_inference_kernel(Strips<kLanes> strips, const T* __restrict__ x, T* __restrict__ y,
                           ConvolutionArrays<Real<T>> arrays) {
  using R = Real<T>;
  if (!strips.active()) return;
  const Filter<R> filter(arrays, strips.channel());
  strips.for_each([&](const auto& strip) {
    convolve_strip(strips, strip, filter, x, [&](int64_t at, int c, R own, R conv) {
      if (strip.has(c)) from_real(own > conv ? own : conv, (y + at)[c * strips.pixel()]);
    });
  });
}

// The convolution of an image that is equal to the channel's first element everywhere. It is near the mean if the
// mean is large compared with the standard deviation. The sums of all threads are combined relative to it.
template <typename R>
__device__ inline R reference_point(const Filter<R>& filter, R first) {
  R value = filter.bias;
  for (int k = 0; k < 9; ++k) value = fma(filter.weight[k], first, value);
  return is_finite(value) ? value : R(0);
}

// The convolution at a strip's first pixel, rounded to T as it is stored, or 0 if it is not finite.
template <typename T, int kLanes>
__device__ inline Real<T> first_of(const Strips<kLanes>& strips, const typename Strips<kLanes>::Strip& strip,
                                   const Filter<Real<T>>& filter, const T* x) {
  Real<T> sum = filter.bias;
#pragma unroll
  for (int k = 0; k < 9; ++k) {
    const int row = k / 3 - 1, column = k % 3 - 1;
    if (!strip.has_row(row) || !strip.has(column)) continue;
    sum = fma(filter.weight[k], to_real(x[strip.start + row * strips.row() + column * strips.pixel()]), sum);
  }
  T rounded;
  from_real(sum, rounded);
  return is_finite(to_real(rounded)) ? to_real(rounded) : Real<T>(0);
}

// sums is [channel][2][item]: the sums of conv - a and (conv - a)^2, where a is the channel's reference point. Each
// thread first sums relative to its own first value (its pivot), so that in float neither a mean far from zero nor an
// outlier costs accuracy.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocks)
    frelu_convolve_kernel(Strips<kLanes> strips, const T* __restrict__ x, T* __restrict__ out,
                          ConvolutionArrays<Real<T>> arrays, double* sums) {
  using R = Real<T>;
  double own[2] = {};
  if (strips.active()) {
    const Filter<R> filter(arrays, strips.channel());
    R pivot = 0, sum = 0, squares = 0;
    int count = 0;
    strips.for_each([&](const auto& strip) {
      if (count == 0) pivot = first_of(strips, strip, filter, x);
      convolve_strip(strips, strip, filter, x, [&](int64_t at, int c, R, R conv) {
        T rounded;
        from_real(conv, rounded);
        if (strip.has(c)) (out + at)[c * strips.pixel()] = rounded;
        const R difference = strip.has(c) ? to_real(rounded) - pivot : R(0);
        sum += difference;
        squares = fma(difference, difference, squares);
      });
      count += strip.rows * int(min(unsigned(kColumns), strip.columns));
    });
    const double shift = double(pivot) - reference_point(filter, to_real(x[strips.channel() * strips.plane()]));
    own[0] = sum + count * shift;
    own[1] = squares + 2 * shift * sum + count * shift * shift;
  }
  strips.store(own, sums);
}

// The mean and variance of a channel's output from these sums.
template <typename T>
struct FinishStatistics {
  using R = Real<T>;
  const T* x;
  int64_t plane;  // distance between channels
  ConvolutionArrays<R> arrays;
  double count;
  R *mean, *var;

  __device__ void operator()(int64_t channel, const double (&sums)[2]) const {
    const double reference = reference_point(Filter<R>(arrays, channel), to_real(x[channel * plane]));
    const double shift = sums[0] / count, variance = sums[1] / count - shift * shift;
    mean[channel] = R(reference + shift);
    var[channel] = R(variance < 0 ? 0 : variance);  // keeps NaN
  }
};

}  // namespace pwlu
