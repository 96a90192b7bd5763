// How a tensor is shared out to blocks, and a block's share to its threads: the part of a per-channel kernel that
// does not depend on the function.
//
// A block works on one item. There are two kinds: of Planes (contiguous memory), a stretch of one channel; of Rows
// (channels last), some rows of kLanes channels, and then thread t has channel t % kLanes alone. An item is about
// kShare elements a thread, so that what a thread sums in float is a short sum. Items depend on the shape
// alone, and results are added up in their order: gradients are the same, bit for bit, from run to run.
#pragma once

#include "../layout.h"
#include "device.cuh"

namespace pwlu {

constexpr int kShare = 64;

// K inputs in parallel and, with kOut, an output.
template <typename T, int K, bool kOut = true>
struct Streams {
  const T* in[K];
  T* out;
  bool keep;  // whether to write it, which may be known at run time alone

  __device__ Streams at(int64_t offset) const {
    Streams moved = *this;
    for (int k = 0; k < K; ++k) moved.in[k] += offset;
    if (kOut) moved.out += offset;
    return moved;
  }
};

// Applies body(inputs) -> output to what U accesses of A, which is T or Pack<T>, bring: all loads, then the rest.
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
    if (kOut && streams.keep) store(reinterpret_cast<A*>(streams.out + u * step), out);
  }
}

// Applies body to n accesses in a row by `side` threads, of which this is number `lane`. U and side are powers of
// two.
template <int U, typename A, typename T, int K, bool kOut, typename Body>
__device__ __forceinline__ void apply_all(const Streams<T, K, kOut>& streams, int lane, int side, int n, Body& body) {
  constexpr int kSize = sizeof(A) / sizeof(T);
  int even = 0;
  // Each warp takes U neighbouring stretches, so that the distance between them is known to the compiler.
  if constexpr (U * kSize > 1) {
    if (side >= kWarp) even = n & ~(U * side - 1);
    for (int i = (lane & ~(kWarp - 1)) * U + (lane & (kWarp - 1)); i < even; i += U * side) {
      apply<U, A>(streams.at(int64_t(i) * kSize), kWarp * kSize, body);
    }
  }
  for (int i = even + lane; i < n; i += side) apply<1, A>(streams.at(int64_t(i) * kSize), 0, body);
}

// Accesses of A that a thread has in flight: enough of them hide the latency of memory.
template <typename A, typename T, int K>
constexpr int kUnrolled = (K == 1 ? 16 : 8) * sizeof(T) / sizeof(A);

// [batch, channels, inner]: an item is `planes` planes of a channel, or a `chunk` of one.
class Planes {
 public:
  static constexpr int kLanes = 1;

  Planes(const Layout& layout, int pack)
      : channels_(unsigned(layout.channels)), batch_(layout.batch), inner_(layout.inner) {
    constexpr int64_t kItem = kThreads * kShare, kEven = kItem / 4;
    const int64_t chunks = (inner_ + kItem - 1) / kItem;
    chunk_ = inner_;
    planes_ = kItem / inner_;
    if (chunks > 1) chunk_ = ((inner_ + chunks - 1) / chunks + kEven - 1) / kEven * kEven;
    if (planes_ < 1) planes_ = 1;
    if (planes_ > batch_) planes_ = batch_;
    chunks_ = unsigned((inner_ + chunk_ - 1) / chunk_);
    while (side_ < kThreads && side_ * pack < chunk_) side_ *= 2;
  }
  __host__ __device__ int64_t channels() const { return channels_; }
  __host__ __device__ int64_t items_of_channel() const { return (batch_ + planes_ - 1) / planes_ * chunks_; }
  int64_t items() const { return items_of_channel() * channels_; }

  struct Item {
    int64_t channel, index;  // and which item of its channel it is
    int64_t start, stride;   // of its planes
    int planes, length, side;

    __device__ bool active() const { return true; }

    // Every thread of the block over its own elements. `side` threads share a plane.
    template <typename T, int K, bool kOut, typename Body>
    __device__ __forceinline__ void sweep(const Streams<T, K, kOut>& streams, Body& body) const {
      using A = Pack<T>;
      const int lane = threadIdx.x & (side - 1);
      const auto address = [](const void* p) { return unsigned(reinterpret_cast<uintptr_t>(p)); };
      bool aligned = !kOut || (address(streams.out) - address(streams.in[0])) % sizeof(A) == 0;  // alike
      for (int k = 1; k < K; ++k) aligned &= (address(streams.in[k]) - address(streams.in[0])) % sizeof(A) == 0;
      for (int plane = threadIdx.x / side; plane < planes; plane += kThreads / side) {
        const auto here = streams.at(start + plane * stride);
        int head = length;
        if (aligned) head = min(length, int(-address(here.in[0]) % sizeof(A) / sizeof(T)));
        const int packs = (length - head) / A::kSize, tail = head + packs * A::kSize;
        apply_all<kUnrolled<A, T, K>, A>(here.at(head), lane, side, packs, body);
        apply_all<4, T>(here, lane, side, head, body);
        apply_all<1, T>(here.at(tail), lane, side, length - tail, body);
      }
    }

    // body(offset) for every step-th element, without haste: unrolled it would be half of a kernel's code.
    template <typename Body>
    __device__ void walk(int first, int step, const Body& body) const {
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
    item.side = side_;
    return item;
  }
  __device__ int64_t first_of(int64_t channel) const { return channel * inner_; }

 private:
  unsigned channels_, chunks_;
  int64_t batch_, inner_, chunk_, planes_;
  int side_ = 1;  // a power of two
};

// [rows, channels]: an item is a block of rows of a tile of kLanes channels.
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
    int64_t channel, index;  // of this thread's lane; past the end it repeats the last channel
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
    __device__ void walk(int first, int step, const Body& body) const {
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
  static constexpr int kRows = kThreads / kLanes * kShare;
  int64_t channels_, rows_;
  unsigned tiles_;
};

}  // namespace pwlu
