// Phase I: ReLU and the moments of its input in a single pass.
//
// Each thread sums x - a and (x - a)^2, where a is the thread's first x (0 if that is not finite), so that neither a
// mean far from zero nor an outlier costs accuracy. These sums are then converted, in double, to sums relative to the
// channel's first element.
#pragma once

#include "items.cuh"

namespace pwlu {

template <typename R>
struct ReluBody {
  R pivot = 0, sum = 0, squares = 0;
  int count = 0;

  __device__ __forceinline__ R operator()(const R (&in)[1]) {
    const R x = in[0];
    if (count == 0) pivot = is_finite(x) ? x : R(0);
    ++count;
    const R difference = x - pivot;
    sum += difference;
    squares = fma(difference, difference, squares);
    return x > 0 ? x : x != x ? x : R(0);
  }
};

template <typename T>
__device__ inline double reference_point(const T* x, int64_t first) {
  const double value = to_real(x[first]);
  return is_finite(value) ? value : 0;
}

// y may be null; sums is [channel][2][item].
template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads, kBlocks) pwlu_phase1_kernel(Items items, const T* x, T* y, double* sums) {
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x);
  ReluBody<Real<T>> body;
  item.sweep(Streams<T, 1>{{x}, y, y != nullptr}, body);

  const double shift = double(body.pivot) - reference_point(x, items.first_of(item.channel));
  double* scratch = reinterpret_cast<double*>(shared_memory);
  const double sum = block_sum<kLanes>(double(body.sum) + body.count * shift, scratch);
  const double squares =
      block_sum<kLanes>(double(body.squares) + 2 * shift * double(body.sum) + body.count * shift * shift, scratch);
  if (threadIdx.x >= kLanes || !item.active()) return;
  const int64_t n = items.items_of_channel();
  sums[item.channel * 2 * n + item.index] = sum;
  sums[(item.channel * 2 + 1) * n + item.index] = squares;
}

// One warp per channel. The sum of squared deviations is divided by `divisor`.
template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pwlu_phase1_finish_kernel(Items items, const T* x, const double* sums, double count, double divisor,
                              Real<T>* mean, Real<T>* deviation) {
  const int64_t channel = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, n = items.items_of_channel();
  if (channel >= items.channels()) return;  // the whole warp
  const double sum = warp_total(sums + channel * 2 * n, n), squares = warp_total(sums + (channel * 2 + 1) * n, n);
  if (threadIdx.x % kWarp > 0) return;
  const double centered = squares - sum * (sum / count);
  mean[channel] = Real<T>(reference_point(x, items.first_of(channel)) + sum / count);
  deviation[channel] = Real<T>((centered < 0 ? 0 : centered) / divisor);  // keeps NaN
}

}  // namespace pwlu
