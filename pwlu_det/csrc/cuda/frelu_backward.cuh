// Funnel ReLU's gradients of x and of the convolution. What comes back to the convolution's output is computed from
// the kept tensors wherever it is needed, also around a strip, and is never in memory.
#pragma once

#include "frelu_norm.cuh"
#include "frelu_strips.cuh"

namespace pwlu {

// How the convolution's gradient follows from that of what was compared with x. In inference they are the same, and y
// is compared with x: it is larger where x lost.
template <typename R>
struct FixedNorm {
  struct Arrays {};
  __device__ FixedNorm(const Arrays&, int64_t) {}
  __device__ __forceinline__ R rival(R y) const { return y; }
  __device__ __forceinline__ R to_conv(R g, R) const { return g; }
};

// In training the batch norm stands between: its mean and variance depend on every element.
template <typename R>
struct BatchNorm {
  struct Arrays {
    NormArrays<R> norm;
    const R* means;  // gradients of the norm's weight and bias over the number of elements: [2][channel]
    int64_t channels;
  };
  NormLine<R> line;
  R slope, offset;

  __device__ BatchNorm(const Arrays& arrays, int64_t channel)
      : line(arrays.norm, channel),
        slope(-line.scale * line.rstd * arrays.means[channel]),
        offset(-line.scale * arrays.means[arrays.channels + channel]) {}
  __device__ __forceinline__ R rival(R conv) const { return line(conv); }
  __device__ __forceinline__ R to_conv(R g, R conv) const {
    return fma(line.scale, g, fma(slope, conv - line.mean, offset));
  }
};

// The gradients that come to the convolution's output, with neighbours, and those that x gets itself, where it won.
template <typename R>
struct GradientRow {
  Pixels<R> to_conv;
  R to_x[kColumns], x[kColumns];
};

template <typename T, typename Norm>
struct GradientSource {
  const T *grad, *x, *kept;
  Norm norm;

  // Column c of the row whose first own pixel is at `at`; `there` is its distance from that.
  __device__ __forceinline__ void load(int64_t at, int64_t there, int c, GradientRow<Real<T>>& row) const {
    using R = Real<T>;
    const R g = to_real((grad + at)[there]), own = to_real((x + at)[there]), other = to_real((kept + at)[there]);
    const bool lost = norm.rival(other) > own;
    row.to_conv[c + 1] = norm.to_conv(lost ? g : R(0), other);
    if (c < 0 || c == kColumns) return;
    row.to_x[c] = lost ? R(0) : g;
    row.x[c] = own;
  }
};

constexpr int kConvolutionSums = 10;  // nine weights and the bias

// sums is [channel][kConvolutionSums][item]; it, or grad_x, is null where it is not wanted. In double it takes more
// registers than elsewhere.
template <typename T, int kLanes, typename Norm>
__global__ void __launch_bounds__(kThreads, sizeof(T) < 8 ? kBlocks : 3)
    frelu_backward_kernel(Strips<kLanes> strips, const T* __restrict__ grad, const T* __restrict__ x,
                          const T* __restrict__ kept, T* __restrict__ grad_x, ConvolutionArrays<Real<T>> convolution,
                          typename Norm::Arrays arrays, double* sums) {
  using R = Real<T>;
  R own[kConvolutionSums] = {};
  if (strips.active()) {
    const Filter<R> filter(convolution, strips.channel());
    const GradientSource<T, Norm> source{grad, x, kept, {arrays, strips.channel()}};
    strips.for_each([&](const auto& strip) {
      const auto load = [&](int64_t at, GradientRow<R>& row) {
        row = {};
#pragma unroll
        for (int c = -1; c <= kColumns; ++c) {
          if (strip.has(c)) source.load(at, c * strips.pixel(), c, row);
        }
      };
      const auto use = [&](int64_t at, const auto& above, const auto& row, const auto& below) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const R by_x = filter.transposed(above.to_conv, row.to_conv, below.to_conv, c, row.to_x[c]);
          if (grad_x && strip.has(c)) from_real(by_x, (grad_x + at)[c * strips.pixel()]);
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (!strip.has(c)) continue;
          for_taps(above.to_conv, row.to_conv, below.to_conv, c,
                   [&](int k, R tap) { own[8 - k] = fma(row.x[c], tap, own[8 - k]); });
          own[9] += row.to_conv[c + 1];
        }
      };
      walk<GradientRow<R>>(strip, strips.row(), load, use);
    });
  }
  if (!sums) return;
  double wide[kConvolutionSums];
  for (int k = 0; k < kConvolutionSums; ++k) wide[k] = own[k];
  strips.store(wide, sums);
}

template <typename R>
struct FinishConvolution {
  R *weight, *bias;

  __device__ void operator()(int64_t channel, const double (&sums)[kConvolutionSums]) const {
    for (int k = 0; k < 9; ++k) weight[channel * 9 + k] = R(sums[k]);
    bias[channel] = R(sums[9]);
  }
};

}  // namespace pwlu
