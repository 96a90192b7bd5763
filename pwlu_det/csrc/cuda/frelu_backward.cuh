// Backward of Funnel ReLU: the gradients of x and of the convolution's parameters. The gradient of the convolution's
// output is never stored: each thread computes it from the saved tensors where it needs it, including around its
// strip.
#pragma once

#include "frelu_norm.cuh"
#include "frelu_strips.cuh"

namespace pwlu {

// Maps the gradient of the value that was compared with x to the gradient of the convolution's output. In inference,
// the two are the same. The output y is saved instead of the convolution's: y > x where the convolution won.
template <typename R>
struct FixedNorm {
  struct Arrays {};
  __device__ FixedNorm(const Arrays&, int64_t) {}
  __device__ __forceinline__ R compared_with_x(R y) const { return y; }
  __device__ __forceinline__ R to_conv(R g, R) const { return g; }
};

// In training, there is a batch norm in between, whose mean and variance depend on every element.
template <typename R>
struct BatchNorm {
  struct Arrays {
    NormArrays<R> norm;
    const R* means;  // gradients of the norm's weight and bias, divided by the number of elements: [2][channel]
    int64_t channels;
  };
  NormLine<R> line;
  R slope, offset;

  __device__ BatchNorm(const Arrays& arrays, int64_t channel)
      : line(arrays.norm, channel),
        slope(-line.scale * line.rstd * arrays.means[channel]),
        offset(-line.scale * arrays.means[arrays.channels + channel]) {}
  __device__ __forceinline__ R compared_with_x(R conv) const { return line(conv); }
  __device__ __forceinline__ R to_conv(R g, R conv) const {
    return fma(line.scale, g, fma(slope, conv - line.mean, offset));
  }
};

// The gradients of the convolution's output, with neighbors, and the direct gradients of x, which are 0 where the
// convolution won.
template <typename R>
struct GradientRow {
  Pixels<R> to_conv;
  R to_x[kColumns], x[kColumns];
};

template <typename T, typename Norm>
struct GradientSource {
  const T *grad, *x, *saved;
  Norm norm;

  // Loads column c of the row whose first pixel in the strip is at `at`. `offset` is the distance of the column from
  // that pixel in memory.
  __device__ __forceinline__ void load(int64_t at, int64_t offset, int c, GradientRow<Real<T>>& row) const {
    using R = Real<T>;
    const R g = to_real((grad + at)[offset]), own = to_real((x + at)[offset]), other = to_real((saved + at)[offset]);
    const bool conv_won = norm.compared_with_x(other) > own;
    row.to_conv[c + 1] = norm.to_conv(conv_won ? g : R(0), other);
    if (c < 0 || c == kColumns) return;
    row.to_x[c] = conv_won ? R(0) : g;
    row.x[c] = own;
  }
};

constexpr int kConvolutionSums = 10;  // nine weights and the bias

// sums is [channel][kConvolutionSums][item]. sums and grad_x may be null if they are not needed. In double, this
// kernel needs more registers than the others.
template <typename T, int kLanes, typename Norm>
__global__ void __launch_bounds__(kThreads, sizeof(T) < 8 ? kBlocks : 3)
    frelu_backward_kernel(Strips<kLanes> strips, const T* __restrict__ grad, const T* __restrict__ x,
                          const T* __restrict__ saved, T* __restrict__ grad_x, ConvolutionArrays<Real<T>> convolution,
                          typename Norm::Arrays arrays, double* sums) {
  using R = Real<T>;
  R own[kConvolutionSums] = {};
  if (strips.active()) {
    const Filter<R> filter(convolution, strips.channel());
    const GradientSource<T, Norm> source{grad, x, saved, {arrays, strips.channel()}};
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
      for_rows<GradientRow<R>>(strip, strips.row(), load, use);
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
