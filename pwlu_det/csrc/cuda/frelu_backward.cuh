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
    const double* sums;  // gradients of the norm's weight and bias: [2][channel]
    double count;
    int64_t channels;
  };
  NormLine<R> line;
  R slope, offset;

  __device__ BatchNorm(const Arrays& arrays, int64_t channel)
      : line(arrays.norm, channel),
        slope(-line.scale * line.rstd * R(arrays.sums[channel] / arrays.count)),
        offset(-line.scale * R(arrays.sums[arrays.channels + channel] / arrays.count)) {}
  __device__ __forceinline__ R rival(R conv) const { return line(conv); }
  __device__ __forceinline__ R to_conv(R g, R conv) const {
    return fma(line.scale, g, fma(slope, conv - line.mean, offset));
  }
};

template <typename R>
struct GradientRow {
  Pixels<R> to_conv;
  R x[kColumns], to_x[kColumns];  // the gradient of x where it won
};

constexpr int kConvolutionSums = 10;  // nine weights and the bias

// sums is [channel][kConvolutionSums][item].
template <typename T, int kLanes, typename Norm>
__global__ void __launch_bounds__(kThreads, kBlocks)
    frelu_backward_kernel(Strips<kLanes> strips, const T* __restrict__ grad, const T* __restrict__ x,
                          const T* __restrict__ kept, T* __restrict__ grad_x, ConvolutionArrays<Real<T>> convolution,
                          typename Norm::Arrays arrays, double* sums) {
  using R = Real<T>;
  R own[kConvolutionSums] = {};
  if (strips.active()) {
    const Filter<R> filter(convolution, strips.channel());
    const Norm norm(arrays, strips.channel());
    strips.for_each([&](const auto& strip) {
      const auto load = [&](int64_t at, GradientRow<R>& row) {
#pragma unroll
        for (int c = -1; c <= kColumns; ++c) {
          R g = 0, value = 0, to_conv = 0;
          bool lost = false;
          if (strip.has(c)) {
            const int64_t i = c * strips.pixel();
            const R rival = to_real((kept + at)[i]);
            g = to_real((grad + at)[i]);
            value = to_real((x + at)[i]);
            lost = norm.rival(rival) > value;
            to_conv = norm.to_conv(lost ? g : R(0), rival);
          }
          row.to_conv[c + 1] = to_conv;
          if (c < 0 || c == kColumns) continue;
          row.x[c] = value;
          row.to_x[c] = lost ? R(0) : g;
        }
      };
      walk<GradientRow<R>>(strip, strips.row(), load,
                           [&](int64_t at, const auto& above, const auto& row, const auto& below) {
#pragma unroll
                             for (int c = 0; c < kColumns; ++c) {
                               if (!strip.has(c)) continue;
                               from_real(filter.transposed(above.to_conv, row.to_conv, below.to_conv, c, row.to_x[c]),
                                         (grad_x + at)[c * strips.pixel()]);
                               for_taps(above.to_conv, row.to_conv, below.to_conv, c,
                                        [&](int k, R tap) { own[8 - k] = fma(row.x[c], tap, own[8 - k]); });
                               own[9] += row.to_conv[c + 1];
                             }
                           });
    });
  }
  double wide[kConvolutionSums];
  for (int k = 0; k < kConvolutionSums; ++k) wide[k] = own[k];
  store_sums(strips, wide, sums);
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
