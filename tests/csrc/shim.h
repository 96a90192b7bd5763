// CUDA's language extensions for g++: included before the source of the kernels, it allows them to run on the host
// unchanged.
//
// Blocks run one after another. Under ThreadSanitizer, the threads of a block are real threads, so that it detects
// missing barriers. Otherwise, they are fibers, each of which runs until it waits for the others. Shared memory is
// filled with NaN before each block, and the part that the launch did not request is poisoned.
#pragma once

#include <ucontext.h>

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
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
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

using std::max;
using std::min;

struct Index {
  unsigned x;
};
#ifdef __SANITIZE_THREAD__
inline thread_local Index threadIdx;
#else
inline Index threadIdx;  // set when switching between fibers
#endif
inline Index blockIdx, blockDim;

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// --- threads and barriers ------------------------------------------------------------------------

namespace emulated {

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxSharedBytes = 48 << 10;

#ifdef __SANITIZE_THREAD__

using Barrier = std::barrier<>;

template <typename Run>
void run_threads(int count, const Run& run) {
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t) {
    threads.emplace_back([&run, t] {
      threadIdx.x = t;
      run();
    });
  }
  for (auto& thread : threads) thread.join();
}

#else

constexpr size_t kStack = 128 << 10;
inline char* const stacks = new char[kMaxThreads * kStack];
inline ucontext_t scheduler, fibers[kMaxThreads];
inline struct {
  bool ended;
  const int* turn;  // the turn of the barrier at which the fiber waits, until it differs from `at`
  int at;
} states[kMaxThreads];

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void arrive_and_wait() {
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++turn_;
      return;
    }
    states[threadIdx.x] = {false, &turn_, turn_};
    swapcontext(&fibers[threadIdx.x], &scheduler);
  }

 private:
  int count_, arrived_ = 0, turn_ = 0;
};

template <typename Run>
void run_threads(int count, const Run& run) {
  static const Run* running;
  running = &run;
  const auto start = [] {
    (*running)();
    states[threadIdx.x].ended = true;
  };
  for (int t = 0; t < count; ++t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks + t * kStack;
    fibers[t].uc_stack.ss_size = kStack;
    fibers[t].uc_link = &scheduler;
    states[t] = {false, nullptr, 0};
    makecontext(&fibers[t], static_cast<void (*)()>(start), 0);
  }
  bool progress = true, all_ended = false;
  while (progress && !all_ended) {
    progress = false, all_ended = true;
    for (int t = 0; t < count; ++t) {
      const auto& state = states[t];
      if (!state.ended && !(state.turn && *state.turn == state.at)) {
        threadIdx.x = t;
        swapcontext(&scheduler, &fibers[t]);
        progress = true;
      }
      all_ended &= state.ended;
    }
  }
  if (!all_ended) std::fprintf(stderr, "threads wait forever at a barrier\n"), std::abort();
}

#endif

struct Block {
  explicit Block(int threads) : all(threads), votes(threads), shuffled(threads) {
    for (int w = 0; w < threads / kWarp; ++w) warps.emplace_back(kWarp);
  }
  Barrier all;
  std::deque<Barrier> warps;
  std::vector<int> votes;
  std::vector<double> shuffled;
};
inline Block* block;

}  // namespace emulated

inline void __syncthreads() { emulated::block->all.arrive_and_wait(); }
inline int __syncthreads_or(int value) {
  emulated::Block& block = *emulated::block;
  block.votes[threadIdx.x] = value != 0;
  block.all.arrive_and_wait();
  int result = 0;
  for (int vote : block.votes) result |= vote;
  block.all.arrive_and_wait();
  return result;
}
inline int __syncthreads_and(int value) { return !__syncthreads_or(!value); }
inline double __shfl_xor_sync(unsigned, double value, int mask) {
  emulated::Block& block = *emulated::block;
  emulated::Barrier& warp = block.warps[threadIdx.x / emulated::kWarp];
  block.shuffled[threadIdx.x] = value;
  warp.arrive_and_wait();
  const double other = block.shuffled[threadIdx.x ^ mask];
  warp.arrive_and_wait();
  return other;
}

namespace pwlu {
alignas(16) inline unsigned char shared_memory[emulated::kMaxSharedBytes];

template <typename... Formal, typename... Actual>
int launch(void (*kernel)(Formal...), int64_t blocks, int threads, int64_t shared_bytes, void*,
           const Actual&... arguments) {
  if (shared_bytes > emulated::kMaxSharedBytes || threads > emulated::kMaxThreads) return 1;
  blockDim.x = threads;
  for (int64_t b = 0; b < blocks; ++b) {
    blockIdx.x = unsigned(b);
    ASAN_UNPOISON_MEMORY_REGION(shared_memory, sizeof shared_memory);
    std::memset(shared_memory, 0xff, sizeof shared_memory);
    ASAN_POISON_MEMORY_REGION(shared_memory + shared_bytes, sizeof shared_memory - shared_bytes);
    emulated::Block shared(threads);
    emulated::block = &shared;
    emulated::run_threads(threads, [&] { kernel(arguments...); });
  }
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

// Rounds down: if the sum, rounded to nearest, is above the exact one (by Knuth's two-sum), takes the next lower
// float.
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
