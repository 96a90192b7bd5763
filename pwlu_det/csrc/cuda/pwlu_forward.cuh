// Forward of PWLU (equation 1).
#pragma once

#include "inputs.cuh"
#include "pwlu_tables.cuh"

namespace pwlu {

// The data of a bin. In float, a single access to shared memory loads all of it.
template <typename R>
struct alignas(16) BinLine {
  R value, slope, center, unused;
};

// [bin][lane]: if each lane of a warp has its own channel, there are no bank conflicts, whichever bins the lanes
// read.
template <typename R, int kLanes>
struct PwluTable {
  static constexpr int kNumbers = 4;

  __device__ PwluTable() : lines(reinterpret_cast<BinLine<R>*>(shared_memory)) {}

  template <typename P>
  __device__ bool make(const Parameters<P>& p, const Line<R>& line) const {
    return make_table<kLanes>(p, line, [&](int i, int k) {
      lines[i] = {R(value_of(p, line, k)), R(slope_of(p, k)), center_of(R(k), line), R(0)};
    });
  }

  BinLine<R>* lines;
};

template <int kLanes, typename R>
struct PwluBody {
  ByBin<R, BinLine<R>, kLanes> lines;
  Line<R> line;
  R trap;  // becomes NaN at the first result that is not finite

  __device__ PwluBody(const PwluTable<R, kLanes>& table, const Line<R>& line)
      : lines(table.lines + threadIdx.x % kLanes), line(line), trap(0) {}

  __device__ __forceinline__ R operator()(const R (&in)[1]) {
    const R x = in[0];
    const BinLine<R> at = load_whole(&lines[raw_bin(x, line)]);
    const R y = fma(at.slope, x - at.center, at.value);
    trap = fma(y, R(0), trap);
    return y;
  }
};

// Recomputes the results that are not finite, or all of them if the channel does not fit in R or has no table.
// It takes the kernel's own arguments, so that the kernel needs no registers for it.
template <typename Input, typename Items, typename T>
__device__ __noinline__ void recompute_pwlu(Items items, Input input, T* y, ParameterArrays<Real<T>> arrays,
                                            bool use_table) {
  using R = Real<T>;
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x);
  const CarefulFunction<R, R> function(arrays.of(item.channel));
  const auto x = input.of(item.channel);
  const bool all = !use_table || !function.fits();
  item.for_each(threadIdx.x / kLanes, kThreads / kLanes, [&](int64_t at) {
    if (all || !is_finite(to_real(y[at]))) from_real(R(function.value(to_real(x[at]))), y[at]);
  });
}

template <typename Input, typename Items, typename T = typename Input::Element>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pwlu_kernel(Items items, Input input, T* y, ParameterArrays<Real<T>> arrays, bool use_table) {
  using R = Real<T>;
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x);
  bool good = false;
  if (use_table) {
    const auto p = arrays.of(item.channel);
    const PwluTable<R, kLanes> table;
    PwluBody<kLanes, R> body(table, make_line<R>(p));
    good = table.make(p, body.line);
    __syncthreads();
    input.sweep(item, y, body);
    good &= body.trap == 0;
  }
  if (__syncthreads_or(!good)) recompute_pwlu(items, input, y, arrays, use_table);
}

// Input<T> is made from `source`.
template <template <typename> class Input, typename Source>
int launch_pwlu_of(const Layout& layout, Element element, const PwluParameters& parameters, const Source& source,
                   void* y, void* stream) {
  const int n = parameters.num_intervals;
  if (!is_supported(layout, element, n)) return kInvalidValue;
  return with_pwlu_items(layout, element, n, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    using Items = std::decay_t<decltype(items)>;
    const int64_t bytes = table_bytes<R>(PwluTable<R, Items::kLanes>::kNumbers, n, Items::kLanes);
    const bool use_table = bytes <= kTableBytes;
    return launch(pwlu_kernel<Input<T>, Items>, items.items(), kThreads, use_table ? bytes : 0, stream, items,
                  Input<T>(source), static_cast<T*>(y), ParameterArrays<R>(parameters), use_table);
  });
}

}  // namespace pwlu
