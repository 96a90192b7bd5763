// The kernels of the pointwise activations, templated over the functions of pointwise_math.h.
//
// A function with a fixed number of parameters is computed in float, with the parameters and the sums of their
// gradients in registers. Results that are not finite, float64 tensors, and functions with a variable number of
// parameters are computed in double, by a simple and slow loop.
#pragma once

#include <algorithm>
#include <type_traits>

#include "dispatch.cuh"
#include "inputs.cuh"
#include "pointwise_launch.h"
#include "pointwise_number.cuh"

namespace pwlu {

// The maximum number of parameters of a function.
template <typename F>
constexpr int kMaxSize = F::kSize ? F::kSize : kMaxParameters;

// Whether the function is computed in float.
template <typename F, typename T>
constexpr bool kFast = F::kSize > 0 && !std::is_same_v<T, double>;

// Coefficient k of a channel is at data[k][channel * stride[k]].
template <typename P, int kMost = kMaxParameters>
struct CoefficientTable {
  int size;
  P* data[kMost];
  int64_t stride[kMost];

  template <typename Void>
  explicit CoefficientTable(const Coefficients<Void>& coefficients) : size(coefficients.size) {
    for (int k = 0; k < size; ++k) {
      data[k] = static_cast<P*>(coefficients.rows[k].data);
      stride[k] = coefficients.rows[k].stride;
    }
  }
  __device__ P& at(int k, int64_t channel) const { return data[k][channel * stride[k]]; }
};

// A function and its parameters.
template <typename F, typename P>
struct Site {
  F function;
  CoefficientTable<const P, kMaxSize<F>> table;

  Site(const F& function, const PointwiseParameters& parameters) : function(function), table(parameters) {}
  __device__ int size() const { return F::kSize ? F::kSize : table.size; }

  template <typename V>
  __device__ void load(int64_t channel, V* own) const {
    for (int k = 0; k < size(); ++k) own[k] = V(table.at(k, channel));
  }
};

// Calls run(function of the activation).
template <typename Run>
auto with_activation(Activation activation, int size, const Run& run) {
  switch (activation) {
#define PWLU_CASE(op, F, ...) \
  case Activation::op:        \
    return with_size<F>(size, run);
    PWLU_FORALL_POINTWISE(PWLU_CASE)
#undef PWLU_CASE
  }
  __builtin_unreachable();
}

// --- forward -------------------------------------------------------------------------------------

template <typename F>
struct PointwiseBody {
  Number own[kMaxSize<F>], trap{0};  // becomes NaN at the first result that is not finite

  __device__ __forceinline__ float operator()(const float (&in)[1]) {
    const Number y = F().forward(Number(in[0]), own);
    trap = fma(y, Number(0), trap);
    return y.value;
  }
};

template <typename F>
__device__ __noinline__ double careful_value(const F& function, double x, const double* own) {
  return function.forward(x, own);
}

// Recomputes in double the results that are not finite, or all of them. It takes the kernel's own arguments, so that
// the kernel needs no registers for it.
template <typename F, typename Input, typename Items, typename T>
__device__ __noinline__ void recompute_pointwise(Items items, Input input, T* y, Site<F, Real<T>> site) {
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x);
  const auto x = input.of(item.channel);
  double own[kMaxSize<F>];
  site.load(item.channel, own);
  item.for_each(threadIdx.x / kLanes, kThreads / kLanes, [&](int64_t at) {
    if (kFast<F, T> && is_finite(to_real(y[at]))) return;
    from_real(Real<T>(careful_value(site.function, to_real(x[at]), own)), y[at]);
  });
}

template <typename F, typename Input, typename Items, typename T = typename Input::Element>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pointwise_kernel(Items items, Input input, T* y, Site<F, Real<T>> site) {
  bool good = false;
  if constexpr (kFast<F, T>) {
    const auto item = items.item(blockIdx.x);
    PointwiseBody<F> body;
    site.load(item.channel, body.own);
    input.sweep(item, y, body);
    good = body.trap.value == 0;
  }
  if (__syncthreads_or(!good)) recompute_pointwise<F>(items, input, y, site);
}

// Input<T> is made from `source`.
template <template <typename> class Input, typename Source>
int launch_pointwise_of(Activation activation, const Layout& layout, Element element,
                        const PointwiseParameters& parameters, const Source& source, void* y, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using Items = std::decay_t<decltype(items)>;
    return with_activation(activation, parameters.size, [&](const auto& function) {
      using F = std::decay_t<decltype(function)>;
      return launch(pointwise_kernel<F, Input<T>, Items>, items.items(), kThreads, 0, stream, items, Input<T>(source),
                    static_cast<T*>(y), Site<F, Real<T>>(function, parameters));
    });
  });
}

// --- backward ------------------------------------------------------------------------------------

// kSums: whether the parameters' gradients are computed, too.
template <typename F, bool kSums>
struct PointwiseBackwardBody {
  static constexpr int kCount = kSums ? F::kSize : 0;
  Number own[kMaxSize<F>], sums[kMaxSize<F>], trap{0};

  __device__ PointwiseBackwardBody() {
    for (int k = 0; k < kCount; ++k) sums[k] = Number(0);
  }
  // in is {x, g}.
  __device__ __forceinline__ float operator()(const float (&in)[2]) {
    Number by_own[kMaxSize<F>];
    const Number g(in[1]), by_x = g * F().backward(Number(in[0]), own, by_own);
    trap = fma(by_x, Number(0), trap);
    for (int k = 0; k < kCount; ++k) sums[k] = fma(g, by_own[k], sums[k]);
    return by_x.value;
  }
  __device__ bool good() {
    for (int k = 0; k < kCount; ++k) trap = fma(sums[k], Number(0), trap);
    return trap.value == 0;
  }
};

// The number of sums that a block adds up at a time, and the shared memory that this needs.
constexpr int kSumsAtOnce = 16;
inline int64_t sum_bytes(int size) { return (size < kSumsAtOnce ? size : kSumsAtOnce) * kThreads * sizeof(double); }

// Adds up the threads' sums of an item in double, with one warp per sum: partials is [channel][sum][item].
template <typename Items>
__device__ __forceinline__ void add_up(const Items& items, int size, double* partials, const double* sums) {
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x);
  double* scratch = reinterpret_cast<double*>(shared_memory);
  const int lane = threadIdx.x % kWarp;
  for (int first = 0; first < size; first += kSumsAtOnce) {
    const int count = size - first < kSumsAtOnce ? size - first : kSumsAtOnce;
    for (int k = 0; k < count; ++k) scratch[k * kThreads + threadIdx.x] = sums[first + k];
    __syncthreads();
    for (int k = threadIdx.x / kWarp; k < count; k += kWarps) {
      double total = 0;
      for (int t = lane; t < kThreads; t += kWarp) total += scratch[k * kThreads + t];
      if (kLanes == 1) total = warp_sum(total);
      if (item.active() && lane < kLanes) {
        partials[(item.channel * size + first + k) * items.items_of_channel() + item.index] = total;
      }
    }
    __syncthreads();  // scratch can be reused
  }
}

template <typename F>
__device__ __noinline__ double careful_slope(const F& function, double x, const double* own, double* by_own) {
  return function.backward(x, own, by_own);
}

// Recomputes the sums of a thread in double, and those elements of dx that are not finite, or all of them. Returns
// the input's own sums.
template <bool kSums, typename F, typename Input, typename Items, typename T>
__device__ __noinline__ typename Input::Sums recompute_pointwise_backward(Items items, const T* grad, Input input,
                                                                          T* grad_x, Site<F, Real<T>> site,
                                                                          double* sums) {
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x);
  const auto x = input.of(item.channel);
  double own[kMaxSize<F>], by_own[kMaxSize<F>];
  site.load(item.channel, own);
  typename Input::Sums input_sums{};
  const int count = kSums ? site.size() : 0;
  for (int k = 0; k < count; ++k) sums[k] = 0;
  item.for_each(threadIdx.x / kLanes, kThreads / kLanes, [&](int64_t at) {
    const bool write = grad_x && !(kFast<F, T> && is_finite(to_real(grad_x[at])));
    if (!kSums && !write) return;
    const double g = to_real(grad[at]), by_x = g * careful_slope(site.function, to_real(x[at]), own, by_own);
    if (write) from_real(Real<T>(by_x), grad_x[at]);
    input.add(x, at, by_x, input_sums);
    for (int k = 0; k < count; ++k) sums[k] += g * by_own[k];
  });
  return input_sums;
}

// grad_x is null if it is not needed. kSums: whether the sums are needed.
template <bool kSums, typename F, typename Input, typename Items, typename T = typename Input::Element>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pointwise_backward_kernel(Items items, const T* grad, Input input, T* grad_x, Site<F, Real<T>> site,
                              double* partials) {
  double sums[kMaxSize<F>];
  typename Input::Sums input_sums;
  bool good = false;
  if constexpr (kFast<F, T>) {
    const auto item = items.item(blockIdx.x);
    PointwiseBackwardBody<F, kSums> body;
    site.load(item.channel, body.own);
    input.sweep(item, grad, grad_x, !kSums || grad_x, body, input_sums);
    good = !__syncthreads_or(!(body.good() && input_sums.finite()));
    for (int k = 0; k < body.kCount; ++k) sums[k] = body.sums[k].value;
  }
  if (!good) input_sums = recompute_pointwise_backward<kSums, F>(items, grad, input, grad_x, site, sums);
  if (kSums) add_up(items, site.size(), partials, sums);
  input.store(items, items.item(blockIdx.x), input_sums);
}

// Adds up the items of each channel, with one warp per sum.
template <typename P>
__global__ void pointwise_finish_kernel(const double* partials, int64_t channels, int64_t items,
                                        CoefficientTable<P> gradients) {
  const int64_t number = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (number >= channels * gradients.size) return;  // the whole warp
  const double sum = warp_total(partials + number * items, items);
  if (threadIdx.x % kWarp == 0) gradients.at(int(number % gradients.size), number / gradients.size) = P(sum);
}

// Input<T> is made from `source`. Without kSums, `gradients` is not used.
template <bool kSums, template <typename> class Input, typename Source>
int launch_pointwise_backward_of(Activation activation, const Layout& layout, Element element,
                                 const PointwiseParameters& parameters, const void* grad, const Source& source,
                                 void* grad_x, const PointwiseGradients* gradients, double* workspace, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using Items = std::decay_t<decltype(items)>;
    const int status = with_activation(activation, parameters.size, [&](const auto& function) {
      using F = std::decay_t<decltype(function)>;
      const int64_t bytes = std::max<int64_t>(kSums ? sum_bytes(parameters.size) : 0, Input<T>::kSharedBytes);
      return launch(pointwise_backward_kernel<kSums, F, Input<T>, Items>, items.items(), kThreads, bytes, stream,
                    items, static_cast<const T*>(grad), Input<T>(source), static_cast<T*>(grad_x),
                    Site<F, Real<T>>(function, parameters), workspace);
    });
    if (status != 0 || !kSums) return status;
    const int64_t sums = items.channels() * parameters.size;
    return launch(pointwise_finish_kernel<Real<T>>, (sums + kWarps - 1) / kWarps, kThreads, 0, stream, workspace,
                  items.channels(), items.items_of_channel(), CoefficientTable<Real<T>>(*gradients));
  });
}

}  // namespace pwlu
