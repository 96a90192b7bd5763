// The batch norm of Funnel ReLU: the maximum of x and the normalized convolution, and the sums for its backward. Both
// kernels are elementwise and need no neighboring pixels.
#pragma once

#include "frelu_launch.h"
#include "sums.cuh"
#include "items.cuh"
#include "norm_line.cuh"

namespace pwlu {

template <typename R>
struct NormaliseBody {
  NormLine<R> norm;

  // in is {x, conv}.
  __device__ __forceinline__ R operator()(const R (&in)[2]) {
    const R normed = norm(in[1]);
    return in[0] > normed ? in[0] : normed;
  }
};

template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads, kBlocks)
    frelu_normalise_kernel(Items items, const T* x, const T* conv, T* y, NormArrays<Real<T>> arrays) {
  const auto item = items.item(blockIdx.x);
  NormaliseBody<Real<T>> body{{arrays, item.channel}};
  item.sweep(Streams<T, 2>{{x, conv}, y, true}, body);
}

template <typename R>
struct NormSumsBody {
  NormLine<R> norm;
  R sum = 0, moment = 0;

  // in is {grad, x, conv}.
  __device__ __forceinline__ R operator()(const R (&in)[3]) {
    const R g = norm(in[2]) > in[1] ? in[0] : R(0);
    sum += g;
    moment = fma(g, in[2] - norm.mean, moment);
    return g;
  }
};

// sums is [channel][2][item].
template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads, kBlocks)
    frelu_norm_sums_kernel(Items items, const T* grad, const T* x, const T* conv, NormArrays<Real<T>> arrays,
                           double* sums) {
  const auto item = items.item(blockIdx.x);
  NormSumsBody<Real<T>> body{{arrays, item.channel}};
  item.sweep(Streams<T, 3, false>{{grad, x, conv}, nullptr, false}, body);
  const double own[] = {body.sum, body.moment};
  const int64_t n = items.items_of_channel();
  store_sums<Items::kLanes>(own, item.active(), sums + item.channel * 2 * n + item.index, n);
}

// The gradients of the norm's weight and bias: [2][channel].
template <typename R>
struct FinishNormSums {
  NormArrays<R> arrays;
  int64_t channels;
  R* gradients;

  __device__ void operator()(int64_t channel, const double (&sums)[2]) const {
    gradients[channel] = R(sums[1] * NormLine<R>(arrays, channel).rstd);
    gradients[channels + channel] = R(sums[0]);
  }
};

}  // namespace pwlu
