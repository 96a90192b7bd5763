// CUDA's language for g++: included before the kernels' source, it lets them run on the host as they are.
//
// A block's threads are std::threads, blocks run in turn, and barriers are barriers: so the sanitizers see
// what a GPU would do wrong without them. Shared memory is filled with NaN before each block, and what a launch did not
// ask for is poisoned.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

#define __device__
#define __host__
#define __global__
#define __shared__
#define __constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(n)

using std::max;
using std::min;

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx;
inline Index blockIdx, blockDim;

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// --- what the threads of a block share -----------------------------------------------------------

namespace emulated {

constexpr int kWarp = 32, kMaxSharedBytes = 48 << 10;

struct Block {
  explicit Block(int threads) : all(threads), exchange(threads) {
    for (int w = 0; w < threads / kWarp; ++w) warps.push_back(std::make_unique<std::barrier<>>(kWarp));
  }
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<double> exchange;  // a number of each thread
};
inline Block* block;

}  // namespace emulated

inline void __syncthreads() { emulated::block->all.arrive_and_wait(); }
inline int __syncthreads_or(int value) {
  emulated::Block& block = *emulated::block;
  block.exchange[threadIdx.x] = value != 0;
  block.all.arrive_and_wait();
  int result = 0;
  for (double one : block.exchange) result |= one != 0;
  block.all.arrive_and_wait();
  return result;
}
inline int __syncthreads_and(int value) { return !__syncthreads_or(!value); }
inline double __shfl_xor_sync(unsigned, double value, int mask) {
  emulated::Block& block = *emulated::block;
  std::barrier<>& warp = *block.warps[threadIdx.x / emulated::kWarp];
  block.exchange[threadIdx.x] = value;
  warp.arrive_and_wait();
  const double other = block.exchange[threadIdx.x ^ mask];
  warp.arrive_and_wait();
  return other;
}

namespace pwlu {
alignas(16) inline unsigned char shared_memory[emulated::kMaxSharedBytes];

template <typename... Formal, typename... Actual>
int launch(void (*kernel)(Formal...), int64_t blocks, int threads, int64_t shared_bytes, void*,
           const Actual&... arguments) {
  if (shared_bytes > emulated::kMaxSharedBytes) return 1;
  emulated::Block shared(threads);
  emulated::block = &shared;
  blockDim.x = threads;
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      threadIdx.x = t;
      for (int64_t b = 0; b < blocks; ++b) {
        if (t == 0) {
          blockIdx.x = unsigned(b);
          ASAN_UNPOISON_MEMORY_REGION(shared_memory, sizeof shared_memory);
          std::memset(shared_memory, 0xff, sizeof shared_memory);
          ASAN_POISON_MEMORY_REGION(shared_memory + shared_bytes, sizeof shared_memory - shared_bytes);
        }
        shared.all.arrive_and_wait();
        kernel(arguments...);
        shared.all.arrive_and_wait();
      }
    });
  }
  for (auto& worker : workers) worker.join();
  return 0;
}
}  // namespace pwlu

// --- arithmetic ----------------------------------------------------------------------------------

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline int __double2int_rd(double x) { return int(std::floor(x)); }

// Rounds down: where the nearest is above the exact sum (Knuth's two-sum tells), the next below.
inline float __fadd_rd(float a, float b) {
  const volatile float sum = a + b, part = sum - a;
  const volatile float error_a = a - (sum - part), error_b = b - part;
  return error_a + error_b < 0 ? std::nextafter(float(sum), -INFINITY) : float(sum);
}

struct __half {
  _Float16 value;
};
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
