// What the kernels of an activation are applied to: a tensor, or the output of a norm, which is computed on the fly
// and never stored (norm_input.cuh).
//
// An input of elements of type T has
//   sweep(item, y, body), for forward: y = body({x})
//   sweep(item, grad, grad_x, write, body, sums), for backward: grad_x = body({x, grad}), and the input's own sums
//   of(channel): x as an array of that channel's elements, for results that are computed again
//   add(x, at, by_x, sums) and store(items, item, sums), for the input's own sums
#pragma once

#include "items.cuh"

namespace pwlu {

// A tensor. It needs no sums.
template <typename T>
struct TensorInput {
  using Element = T;
  static constexpr bool kHasSums = false;
  static constexpr int64_t kSharedBytes = 0;
  struct Sums {
    __device__ bool finite() const { return true; }
  };

  const T* x;

  explicit TensorInput(const void* x) : x(static_cast<const T*>(x)) {}

  template <typename Item, typename Body>
  __device__ __forceinline__ void sweep(const Item& item, T* y, Body& body) const {
    item.sweep(Streams<T, 1>{{x}, y, true}, body);
  }
  template <typename Item, typename Body>
  __device__ __forceinline__ void sweep(const Item& item, const T* grad, T* grad_x, bool write, Body& body,
                                        Sums&) const {
    item.sweep(Streams<T, 2>{{x, grad}, grad_x, write}, body);
  }
  __device__ const T* of(int64_t) const { return x; }
  __device__ void add(const T*, int64_t, double, Sums&) const {}
  template <typename Items, typename Item>
  __device__ void store(const Items&, const Item&, const Sums&) const {}
};

}  // namespace pwlu
