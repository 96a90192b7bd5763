// ReLU on the output of a norm, and the backward of the norm after that of any activation.
#pragma once

#include "norm_input.cuh"
#include "../pointwise_math.h"  // its min and max would hide CUDA's

namespace pwlu {

struct NormReluBody {
  template <typename R>
  __device__ __forceinline__ R operator()(const R (&in)[1]) {
    return relu(in[0]);
  }
  // in is {z, g}.
  template <typename R>
  __device__ __forceinline__ R operator()(const R (&in)[2]) {
    return where_positive(in[0], in[1], R(0));
  }
};

template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads, kBlocks) norm_relu_kernel(Items items, NormInput<T> input, T* y) {
  NormReluBody body;
  input.sweep(items.item(blockIdx.x), y, body);
}

template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_relu_backward_kernel(Items items, const T* grad, NormInput<T> input, T* dz) {
  const auto item = items.item(blockIdx.x);
  NormReluBody body;
  typename NormInput<T>::Sums sums;
  input.sweep(item, grad, dz, dz != nullptr, body, sums);
  input.store(items, item, sums);
}

// The gradients of the norms' weights and biases: [2 or 4][channel].
template <typename R>
struct FinishNorm {
  NormArrays<R> norm, added_norm;
  int64_t channels;
  R* gradients;

  __device__ void operator()(int64_t channel, const double (&sums)[kNormSums]) const {
    set(norm, channel, sums[1], sums[0], gradients);
    if (added_norm.mean) set(added_norm, channel, sums[2], sums[0], gradients + 2 * channels);
  }

 private:
  __device__ void set(const NormArrays<R>& arrays, int64_t channel, double moment, double sum, R* rows) const {
    rows[channel] = R(moment * NormLine<R>(arrays, channel).rstd);
    rows[channels + channel] = R(sum);
  }
};

// scale * dz + slope * (x - mean) + offset, or scale * dz alone, as 0 * (x - mean) may be NaN.
template <typename R>
struct NormGradientBody {
  NormLine<R> norm;
  R slope, offset;
  bool batch_statistics;

  // in is {dz, x}.
  __device__ __forceinline__ R operator()(const R (&in)[2]) {
    const R scaled = norm.scale * in[0];
    return batch_statistics ? scaled + fma(slope, in[1] - norm.mean, offset) : scaled;
  }
};

// `gradients` is those of the weight and the bias, or null. grad_x may be dz.
template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_gradient_kernel(Items items, const T* dz, const T* x, NormArrays<Real<T>> arrays, const Real<T>* gradients,
                         double count, T* grad_x) {
  using R = Real<T>;
  const auto item = items.item(blockIdx.x);
  NormGradientBody<R> body{{arrays, item.channel}, 0, 0, gradients != nullptr};
  if (gradients) {
    const R share = R(-body.norm.scale / count);
    body.slope = share * body.norm.rstd * gradients[item.channel];
    body.offset = share * gradients[items.channels() + item.channel];
  }
  item.sweep(Streams<T, 2>{{dz, x}, grad_x, true}, body);
}

}  // namespace pwlu
