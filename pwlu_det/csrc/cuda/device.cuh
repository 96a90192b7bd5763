// The basis of all kernels here: element types, 16-byte accesses, sums over a block, and the launch.
//
// The .cuh and .cu files do not need torch. The tests also compile them for the host, with replacements for what
// CUDA provides (threadIdx, __syncthreads, launch, ...).
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pwlu {

constexpr int kThreads = 128, kWarp = 32, kWarps = kThreads / kWarp;  // per block, by default

// Number of blocks that must be resident on a multiprocessor. This allows 128 registers per thread; without it, the
// compiler uses fewer and spills some to memory.
constexpr int kBlocks = 4;

using Half = __half;
using BFloat16 = __nv_bfloat16;

// The type that elements of type T are computed in, which is also the type of their parameters.
template <typename T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <typename T>
using Real = typename RealOf<T>::type;

__device__ inline float to_real(float x) { return x; }
__device__ inline double to_real(double x) { return x; }
__device__ inline float to_real(Half x) { return __half2float(x); }
__device__ inline float to_real(BFloat16 x) { return __bfloat162float(x); }

__device__ inline void from_real(float x, float& to) { to = x; }
__device__ inline void from_real(double x, double& to) { to = x; }
__device__ inline void from_real(float x, Half& to) { to = __float2half_rn(x); }
__device__ inline void from_real(float x, BFloat16& to) { to = __float2bfloat16_rn(x); }

// Whether x is neither infinite nor NaN.
template <typename R>
__device__ inline bool is_finite(R x) {
  return x - x == 0;
}

// Hides from ptxas that a number is a constant, which it would load again for each element instead of keeping it in a
// register.
static __constant__ unsigned zero = 0;
__device__ inline unsigned opaque(unsigned x) { return x ^ zero; }

// A memory access moves one element or a 16-byte pack of elements, which is read and written explicitly as a whole,
// since the compiler might split it.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T element[kSize];
};
template <typename T>
__device__ inline T load(const T* from) {
  return *from;
}
template <typename T>
__device__ inline void store(T* to, const T& value) {
  *to = value;
}
template <typename T>
__device__ inline Pack<T> load(const Pack<T>* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}
template <typename T>
__device__ inline void store(Pack<T>* to, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z),
               "r"(bits.w)
               : "memory");
#else
  *reinterpret_cast<uint4*>(to) = bits;
#endif
}

extern __shared__ __align__(16) unsigned char shared_memory[];  // its size is an argument of the launch

// The sum over a warp, in a fixed order, returned to every lane.
__device__ inline double warp_sum(double value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// The sum, in a fixed order, over the threads with the same threadIdx.x % kLanes, returned to the threads below
// kLanes. All threads of the block must call this. `scratch` has one number per thread.
template <int kLanes>
__device__ inline double block_sum(double value, double* scratch) {
  static_assert(kLanes == 1 || kLanes == kWarp, "other widths need other shuffles");
  scratch[threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x < kWarp) {
    for (int t = threadIdx.x; t < int(blockDim.x); t += kWarp) sum += scratch[t];
    if (kLanes == 1) sum = warp_sum(sum);
  }
  __syncthreads();  // scratch can be reused
  return sum;
}

// The sum of n numbers by one warp, in a fixed order.
__device__ inline double warp_total(const double* numbers, int64_t n) {
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) sum += numbers[i];
  return warp_sum(sum);
}

#ifdef __CUDACC__
// Starts a kernel on a stream and returns a cudaError_t.
template <typename... Formal, typename... Actual>
int launch(void (*kernel)(Formal...), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
           const Actual&... arguments) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  kernel<<<unsigned(blocks), threads, size_t(shared_bytes), static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}
#endif

}  // namespace pwlu
