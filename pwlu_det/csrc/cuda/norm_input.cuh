// The output of a norm, possibly plus an added tensor, as the input of an activation (see inputs.cuh).
#pragma once

#include "sums.cuh"
#include "inputs.cuh"
#include "norm_launch.h"
#include "norm_line.cuh"

namespace pwlu {

// The sums of dz, of dz * (x - mean) and of dz * (added - its mean).
constexpr int kNormSums = 3;

// x if the mask has all bits, 0 if it has none. With a condition instead, the compiler would make two copies of a
// loop.
__device__ __forceinline__ float masked(float x, unsigned mask) { return __uint_as_float(__float_as_uint(x) & mask); }
__device__ __forceinline__ double masked(double x, unsigned mask) { return mask ? x : 0; }

// The norms of a channel. What is added has a scale of 1 if it has no norm.
template <typename R>
struct NormLines {
  NormLine<R> own, other;
  unsigned added_mask;  // 0 if nothing is added

  // (x - mean) * scale + beta, plus (added - its mean) * its scale, where beta is the sum of both biases
  __device__ __forceinline__ R operator()(R x, R added) const { return other.plus(added, own(x)); }
  // What is added: its stream is that of x if this is nothing.
  __device__ __forceinline__ R added(R stream) const { return masked(stream, added_mask); }
};

// Calls body({z, g}), and sums its results.
template <typename R, typename Body>
struct NormBackwardBody {
  const NormLines<R>& lines;
  Body& body;
  R sums[kNormSums] = {};

  // in is {x, added, g}.
  __device__ __forceinline__ R operator()(const R (&in)[3]) {
    const R added = lines.added(in[1]), z_and_g[] = {lines(in[0], added), in[2]};
    const R dz = body(z_and_g);
    sums[0] += dz;
    sums[1] = fma(dz, in[0] - lines.own.mean, sums[1]);
    sums[2] = fma(dz, added - lines.other.mean, sums[2]);
    return dz;
  }
};

template <typename R, typename Body>
struct NormBody {
  const NormLines<R>& lines;
  Body& body;

  // in is {x, added}.
  __device__ __forceinline__ R operator()(const R (&in)[2]) {
    const R z[] = {lines(in[0], lines.added(in[1]))};
    return body(z);
  }
};

template <typename T>
class NormInput {
  using R = Real<T>;

 public:
  using Element = T;
  static constexpr bool kHasSums = true;
  static constexpr int64_t kSharedBytes = kSumsBytes<kNormSums>;
  struct Sums {
    double values[kNormSums];

    __device__ bool finite() const { return is_finite(values[0]) && is_finite(values[1]) && is_finite(values[2]); }
  };
  struct Channel {
    const T *x, *added;
    NormLines<R> lines;

    __device__ R operator[](int64_t at) const { return lines(to_real(x[at]), lines.added(to_real(added[at]))); }
  };

  explicit NormInput(const NormSource& source, double* sums = nullptr)
      : x_(static_cast<const T*>(source.x)),
        added_(source.added ? static_cast<const T*>(source.added) : x_),  // two streams in any case
        has_added_(source.added != nullptr),
        norm_(source.norm),
        added_norm_(source.added_norm),
        sums_(sums) {}
  explicit NormInput(const std::pair<NormSource, double*>& both) : NormInput(both.first, both.second) {}

  __device__ NormLines<R> lines(int64_t channel) const {
    NormLines<R> lines{{norm_, channel}, {}, has_added_ ? ~0u : 0};
    if (added_norm_.mean) lines.other = {added_norm_, channel};
    lines.own.bias += lines.other.bias;
    return lines;
  }
  __device__ Channel of(int64_t channel) const { return {x_, added_, lines(channel)}; }

  template <typename Item, typename Body>
  __device__ __forceinline__ void sweep(const Item& item, T* y, Body& body) const {
    const NormLines<R> own = lines(item.channel);
    NormBody<R, Body> normed{own, body};
    item.sweep(Streams<T, 2>{{x_, added_}, y, true}, normed);
  }
  template <typename Item, typename Body>
  __device__ __forceinline__ void sweep(const Item& item, const T* grad, T* dz, bool write, Body& body,
                                        Sums& sums) const {
    const NormLines<R> own = lines(item.channel);
    NormBackwardBody<R, Body> normed{own, body};
    item.sweep(Streams<T, 3>{{x_, added_, grad}, dz, write}, normed);
    for (int k = 0; k < kNormSums; ++k) sums.values[k] = normed.sums[k];
  }
  __device__ void add(const Channel& channel, int64_t at, double dz, Sums& sums) const {
    sums.values[0] += dz;
    sums.values[1] += dz * (double(to_real(x_[at])) - channel.lines.own.mean);
    sums.values[2] += dz * (double(to_real(added_[at])) - channel.lines.other.mean);
  }
  // sums_ is [channel][kNormSums][item]. All threads of the block must call this.
  template <typename Items, typename Item>
  __device__ void store(const Items& items, const Item& item, const Sums& sums) const {
    if (!sums_) return;
    const int64_t n = items.items_of_channel();
    store_sums<Items::kLanes>(sums.values, item.active(), sums_ + item.channel * kNormSums * n + item.index, n);
  }

 private:
  const T *x_, *added_;
  bool has_added_;
  NormArrays<R> norm_, added_norm_;
  double* sums_;
};

}  // namespace pwlu
