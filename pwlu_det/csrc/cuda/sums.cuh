// Sums over a channel, in a fixed order: first over each item by its block, then over the items of the channel.
#pragma once

#include "device.cuh"

namespace pwlu {

// Bytes of shared memory for the sums of a block.
template <int kSums>
constexpr int64_t kSumsBytes = kSums * kThreads * sizeof(double);

// Writes the sums over the threads of a block that have the same channel to sums[0], sums[step], ... of that channel.
// The block has a single channel, or one per lane of a warp.
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

// Adds up the items of each channel, with one warp per channel, and calls finish(channel, sums).
template <int kSums, typename Finish>
__global__ void finish_sums_kernel(const double* parts, int64_t channels, int64_t items, Finish finish) {
  const int64_t channel = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (channel >= channels) return;  // the whole warp
  double sums[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = warp_total(parts + (channel * kSums + k) * items, items);
  if (threadIdx.x % kWarp == 0) finish(channel, sums);
}

// Launches it.
template <int kSums, typename Work, typename Finish>
int finish_sums(const Work& work, const double* parts, const Finish& finish, void* stream) {
  return launch(finish_sums_kernel<kSums, Finish>, (work.channels() + kWarps - 1) / kWarps, kThreads, 0, stream,
                parts, work.channels(), work.items_of_channel(), finish);
}

}  // namespace pwlu
