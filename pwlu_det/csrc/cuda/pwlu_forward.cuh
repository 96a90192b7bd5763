// y of equation 1.
#pragma once

#include "items.cuh"
#include "pwlu_tables.cuh"

namespace pwlu {

// [bin][lane] of value and slope, then of centres: the lanes of a warp meet in no bank of shared memory, whichever
// bins they want, unless there are many bins.
template <typename R, int kLanes>
struct ForwardTable {
  static constexpr int kNumbers = 3;

  __device__ explicit ForwardTable(int num_intervals)
      : lines(reinterpret_cast<Two<R>*>(shared_memory)),
        centers(reinterpret_cast<R*>(lines + (num_intervals + 2) * kLanes)) {}

  template <typename P>
  __device__ bool make(const Parameters<P>& p, const Line<R>& line) const {
    return make_table<kLanes>(p, line, [&](int i, int k) {
      lines[i] = {R(value_of(p, line, k)), R(slope_of(p, k))};
      centers[i] = center_of(R(k), line);
    });
  }

  Two<R>* lines;
  R* centers;
};

template <int kLanes, typename R>
struct ForwardBody {
  ByBin<R, Two<R>, kLanes> lines;
  ByBin<R, R, kLanes> centers;
  Line<R> line;
  R trap;  // NaN once a result was not finite

  __device__ ForwardBody(const ForwardTable<R, kLanes>& table, const Line<R>& line)
      : lines(table.lines + threadIdx.x % kLanes),
        centers(table.centers + threadIdx.x % kLanes),
        line(line),
        trap(0) {}

  __device__ __forceinline__ R operator()(const R (&in)[1]) {
    const R x = in[0];
    const unsigned bin = raw_bin(x, line);
    const Two<R> at = lines[bin];  // value, slope
    const R y = fma(at.second, x - centers[bin], at.first);
    trap = fma(y, R(0), trap);
    return y;
  }
};

// Computes anew what is not finite, or all where the channel does not fit R or has no table.
template <typename T, typename Item, int kLanes>
__device__ __noinline__ void mend_forward(const Item& item, const T* x, T* y, const ParameterArrays<Real<T>>& arrays,
                                          bool tabled) {
  using R = Real<T>;
  const CarefulFunction<R, R> function(arrays.of(item.channel));
  const bool all = !tabled || !function.fits();
  item.walk(threadIdx.x / kLanes, kThreads / kLanes, [&](int64_t at) {
    if (all || !is_finite(to_real(y[at]))) from_real(R(function.value(to_real(x[at]))), y[at]);
  });
}

template <typename T, typename Items>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Items items, const T* x, T* y, ParameterArrays<Real<T>> arrays, bool tabled) {
  using R = Real<T>;
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x);
  bool good = false;
  if (tabled) {
    const auto p = arrays.of(item.channel);
    const ForwardTable<R, kLanes> table(p.num_intervals);
    ForwardBody<kLanes, R> body(table, make_line<R>(p));
    good = table.make(p, body.line);
    __syncthreads();
    item.sweep(Streams<T, 1>{{x}, y, true}, body);
    good &= body.trap == 0;
  }
  if (__syncthreads_or(!good)) {
    mend_forward<T, typename Items::Item, kLanes>(item, x, y, arrays, tabled);
  }
}

}  // namespace pwlu
