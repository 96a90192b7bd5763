// Distributes a tensor over blocks, and the part of a block over its threads. This part of a per-channel kernel does
// not depend on the function.
//
// A block processes one item: in Planes (contiguous), a piece of one channel; in Rows (channels last), some rows of
// kLanes channels, with channel t % kLanes for thread t. An item has about kElementsPerThread elements per thread,
// few enough to be summed in float. Items depend only on the shape, and their results are added up in a fixed order,
// so that gradients are bit-identical from run to run.
#pragma once

#include "../layout.h"
#include "device.cuh"

namespace pwlu {

constexpr int kElementsPerThread = 64;

// K input arrays and, if kOut, an output array.
template <typename T, int K, bool kOut = true>
struct Streams {
  const T* in[K];
  T* out;
  bool write;  // whether to write the output, if this is known only at run time

  __device__ Streams at(int64_t offset) const {
    Streams moved = *this;
    for (int k = 0; k < K; ++k) moved.in[k] += offset;
    if (kOut) moved.out += offset;
    return moved;
  }
};

// Applies body(inputs) -> output to the elements of U accesses of type A, which is T or Pack<T>. All loads come
// first.
template <int U, typename A, typename T, int K, bool kOut, typename Body>
__device__ __forceinline__ void apply(const Streams<T, K, kOut>& streams, int64_t step, Body& body) {
  constexpr int kSize = sizeof(A) / sizeof(T);
  A in[K][U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
#pragma unroll
    for (int k = 0; k < K; ++k) in[k][u] = load(reinterpret_cast<const A*>(streams.in[k] + u * step));
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    A out;
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      Real<T> element[K];
#pragma unroll
      for (int k = 0; k < K; ++k) element[k] = to_real(reinterpret_cast<const T*>(&in[k][u])[e]);
      from_real(body(element), reinterpret_cast<T*>(&out)[e]);
    }
    if (kOut && streams.write) store(reinterpret_cast<A*>(streams.out + u * step), out);
  }
}

// Applies body to n consecutive accesses, distributed over `threads` threads, of which this is number `lane`. U and
// threads are powers of two.
template <int U, typename A, typename T, int K, bool kOut, typename Body>
__device__ __forceinline__ void apply_all(const Streams<T, K, kOut>& streams, int lane, int threads, int n,
                                          Body& body) {
  constexpr int kSize = sizeof(A) / sizeof(T);
  int even = 0;
  // The U accesses of a thread are one warp apart, a distance that the compiler knows.
  if constexpr (U * kSize > 1) {
    if (threads >= kWarp) even = n & ~(U * threads - 1);
    for (int i = (lane & ~(kWarp - 1)) * U + (lane & (kWarp - 1)); i < even; i += U * threads) {
      apply<U, A>(streams.at(int64_t(i) * kSize), kWarp * kSize, body);
    }
  }
  for (int i = even + lane; i < n; i += threads) apply<1, A>(streams.at(int64_t(i) * kSize), 0, body);
}

// The number of accesses of type A that a thread has in flight, enough to hide the memory latency.
template <typename A, typename T, int K>
constexpr int kUnrolled = (K == 1 ? 16 : 8) * sizeof(T) / sizeof(A);

// [batch, channels, inner]: an item is one or several whole planes of a channel, or a chunk of one plane.
class Planes {
 public:
  static constexpr int kLanes = 1;

  Planes(const Layout& layout, int pack)
      : channels_(unsigned(layout.channels)), batch_(layout.batch), inner_(layout.inner) {
    constexpr int64_t kItem = kThreads * kElementsPerThread, kEven = kItem / 4;
    const int64_t chunks = (inner_ + kItem - 1) / kItem;
    chunk_ = inner_;
    planes_ = kItem / inner_;
    if (chunks > 1) chunk_ = ((inner_ + chunks - 1) / chunks + kEven - 1) / kEven * kEven;
    if (planes_ < 1) planes_ = 1;
    if (planes_ > batch_) planes_ = batch_;
    chunks_ = unsigned((inner_ + chunk_ - 1) / chunk_);
    while (threads_per_plane_ < kThreads && threads_per_plane_ * pack < chunk_) threads_per_plane_ *= 2;
  }
  __host__ __device__ int64_t channels() const { return channels_; }
  __host__ __device__ int64_t items_of_channel() const { return (batch_ + planes_ - 1) / planes_ * chunks_; }
  int64_t items() const { return items_of_channel() * channels_; }

  struct Item {
    int64_t channel, index;  // index of the item in its channel
    int64_t start, stride;   // of its planes
    int planes, length, threads_per_plane;

    __device__ bool active() const { return true; }

    // Applies body to the elements of this thread.
    template <typename T, int K, bool kOut, typename Body>
    __device__ __forceinline__ void sweep(const Streams<T, K, kOut>& streams, Body& body) const {
      using A = Pack<T>;
      const int lane = threadIdx.x & (threads_per_plane - 1);
      const auto address = [](const void* p) { return unsigned(reinterpret_cast<uintptr_t>(p)); };
      // Whether all arrays are misaligned by the same amount, so that all are aligned after the head.
      bool aligned = !kOut || (address(streams.out) - address(streams.in[0])) % sizeof(A) == 0;
      for (int k = 1; k < K; ++k) aligned &= (address(streams.in[k]) - address(streams.in[0])) % sizeof(A) == 0;
      for (int plane = threadIdx.x / threads_per_plane; plane < planes; plane += kThreads / threads_per_plane) {
        const auto here = streams.at(start + plane * stride);
        int head = length;
        if (aligned) head = min(length, int(-address(here.in[0]) % sizeof(A) / sizeof(T)));
        const int packs = (length - head) / A::kSize, tail = head + packs * A::kSize;
        apply_all<kUnrolled<A, T, K>, A>(here.at(head), lane, threads_per_plane, packs, body);
        apply_all<4, T>(here, lane, threads_per_plane, head, body);
        apply_all<1, T>(here.at(tail), lane, threads_per_plane, length - tail, body);
      }
    }

    // Calls body(offset) for every step-th element. It is slow: unrolled, it would be half of a kernel's code.
    template <typename Body>
    __device__ void for_each(int first, int step, const Body& body) const {
#pragma unroll 1
      for (int i = first; i < planes * length; i += step) body(start + i / length * stride + i % length);
    }
  };

  __device__ Item item(unsigned number) const {
    const unsigned chunk = number % chunks_, rest = number / chunks_, channel = rest % channels_;
    const int64_t outer = rest / channels_, first = outer * planes_;
    Item item;
    item.channel = channel;
    item.index = outer * chunks_ + chunk;
    item.start = (first * channels_ + channel) * inner_ + chunk * chunk_;
    item.stride = channels_ * inner_;
    item.planes = int(min(planes_, batch_ - first));
    item.length = int(min(chunk_, inner_ - chunk * chunk_));
    item.threads_per_plane = threads_per_plane_;
    return item;
  }
  __device__ int64_t first_of(int64_t channel) const { return channel * inner_; }

 private:
  unsigned channels_, chunks_;
  int64_t batch_, inner_, chunk_, planes_;
  int threads_per_plane_ = 1;  // a power of two
};

// [rows, channels]: an item is kRows rows of kLanes channels.
class Rows {
 public:
  static constexpr int kLanes = kWarp;

  Rows(const Layout& layout, int)
      : channels_(layout.channels),
        rows_(layout.batch * layout.inner),
        tiles_(unsigned((channels_ + kLanes - 1) / kLanes)) {}
  __host__ __device__ int64_t channels() const { return channels_; }
  __host__ __device__ int64_t items_of_channel() const { return (rows_ + kRows - 1) / kRows; }
  int64_t items() const { return items_of_channel() * tiles_; }

  struct Item {
    int64_t channel, index;  // of this thread's lane; lanes past the last channel repeat it
    int64_t start, stride;
    int rows;
    bool inside;

    __device__ bool active() const { return inside; }

    template <typename T, int K, bool kOut, typename Body>
    __device__ __forceinline__ void sweep(const Streams<T, K, kOut>& streams, Body& body) const {
      if (!inside) return;
      constexpr int U = K == 1 ? 8 : 4, kStep = kThreads / kLanes;
      auto here = streams.at(start + threadIdx.x / kLanes * stride);
      int row = threadIdx.x / kLanes;
      for (; row + (U - 1) * kStep < rows; row += U * kStep, here = here.at(U * kStep * stride)) {
        apply<U, T>(here, kStep * stride, body);
      }
      for (; row < rows; row += kStep, here = here.at(kStep * stride)) apply<1, T>(here, 0, body);
    }

    template <typename Body>
    __device__ void for_each(int first, int step, const Body& body) const {
      if (!inside) return;
#pragma unroll 1
      for (int i = first; i < rows; i += step) body(start + i * stride);
    }
  };

  __device__ Item item(unsigned number) const {
    const int64_t index = number / tiles_, channel = int64_t(number % tiles_) * kLanes + threadIdx.x % kLanes;
    Item item;
    item.inside = channel < channels_;
    item.channel = item.inside ? channel : channels_ - 1;
    item.index = index;
    item.start = index * kRows * channels_ + item.channel;
    item.stride = channels_;
    item.rows = int(min(int64_t(kRows), rows_ - index * kRows));
    return item;
  }
  __device__ int64_t first_of(int64_t channel) const { return channel; }

 private:
  static constexpr int kRows = kThreads / kLanes * kElementsPerThread;
  int64_t channels_, rows_;
  unsigned tiles_;
};

}  // namespace pwlu
