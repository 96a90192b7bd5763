// Sums over a channel, in a fixed order: each item's by its block, then those of a channel's items.
#pragma once

#include "device.cuh"

namespace pwlu {

// Shared memory for the sums of a block.
template <int kSums>
constexpr int64_t kSumsBytes = kSums * kThreads * sizeof(double);

// The sums over the threads of a block that have the same channel, to sums[0], sums[step], ... of that channel. The
// threads have one channel together, or one for each lane of a warp.
template <int kLanes, int kSums>
__device__ inline void store_sums(const double (&own)[kSums], bool active, double* sums, int64_t step) {
  double* scratch = reinterpret_cast<double*>(shared_memory);  // [sum][thread]
#pragma unroll
  for (int k = 0; k < kSums; ++k) scratch[k * kThreads + threadIdx.x] = own[k];
  __syncthreads();
#pragma unroll 1
  for (int k = threadIdx.x / kWarp; k < kSums; k += kWarps) {
    double sum = 0;
    for (int t = threadIdx.x % kWarp; t < kThreads; t += kWarp) sum += scratch[k * kThreads + t];
    if (kLanes == 1) sum = warp_sum(sum);
    if (threadIdx.x % kWarp < kLanes && active) sums[k * step] = sum;
  }
}

// Adds up the items of each channel, a warp for each, and calls finish(channel, sums).
template <int kSums, typename Finish>
__global__ void finish_sums_kernel(const double* parts, int64_t channels, int64_t items, Finish finish) {
  const int64_t channel = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (channel >= channels) return;  // all of the warp
  double sums[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = warp_total(parts + (channel * kSums + k) * items, items);
  if (threadIdx.x % kWarp == 0) finish(channel, sums);
}

}  // namespace pwlu
