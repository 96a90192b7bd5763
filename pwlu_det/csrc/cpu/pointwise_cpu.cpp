// The ops of the pointwise activations on a CPU.
#include "../pointwise_ops.h"

#include <ATen/ATen.h>

#include <vector>

#include "dispatch.h"
#include "items.h"
#include "pointwise_table.h"

namespace pwlu {
namespace {

// Calls run(offset, rows, stride) for each part of an item's memory.
template <typename F>
void for_stretches(const Layout& layout, const Item& item, const F& run) {
  if (layout.channels_last) {
    return run(item.begin * layout.channels + item.channel, item.end - item.begin, layout.channels);
  }
  for_rows(layout, item, [&](int64_t at, int64_t n) { run(at, n, int64_t(1)); });
}

struct Cpu {
  template <const Signature& kSignature, auto kFunction>
  static void add(torch::Library& m) {
    define_op<kSignature, kFunction>(m, kernels().pointwise != nullptr);
  }

  static Tensor forward(Activation activation, const Tensor& x, const ParameterRows& parameters) {
    const ParameterTable table(parameters);
    const PointwiseKernels& kernels = pwlu::kernels().pointwise->of(activation);
    const auto format = format_of(x);
    const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
    const Layout layout = layout_of(dense, table.channels(), format);
    with_dtype(x, [&](auto type) {
      using T = decltype(type);
      const auto* from = static_cast<const T*>(dense.const_data_ptr());
      auto* to = static_cast<T*>(y.mutable_data_ptr());
      for_items(layout, [&](const Item& item) {
        for_stretches(layout, item, [&](int64_t at, int64_t rows, int64_t stride) {
          kernels.of<T>().forward(from + at, to + at, rows, stride, table.of(item.channel, item.num_channels));
        });
      });
    });
    return with_layout_of(x, dense, y);
  }

  static Tensor backward(Activation activation, const Tensor& grad, const Tensor& x, const ParameterRows& parameters,
                         bool with_x, const ParameterRows& gradients) {
    const ParameterTable table(parameters);
    const PointwiseKernels& kernels = pwlu::kernels().pointwise->of(activation);
    const auto format = format_of(x);
    const Tensor dense = x.contiguous(format), g = grad.contiguous(format);
    const Tensor grad_x = with_x ? at::empty_like(dense) : Tensor();
    const Layout layout = layout_of(dense, table.channels(), format);
    const int64_t width = gradients.empty() ? 0 : table.size();
    std::vector<double> sums;  // [channels, width]
    with_dtype(x, [&](auto type) {
      using T = decltype(type);
      const auto* from = static_cast<const T*>(dense.const_data_ptr());
      const auto* incoming = static_cast<const T*>(g.const_data_ptr());
      auto* to = with_x ? static_cast<T*>(grad_x.mutable_data_ptr()) : nullptr;
      sums = sum_by_channel<double>(layout, table.channels(), width, [&](const Item& item, double* own) {
        for_stretches(layout, item, [&](int64_t at, int64_t rows, int64_t stride) {
          kernels.of<T>().backward(incoming + at, from + at, advance(to, at), rows, stride,
                                   table.of(item.channel, item.num_channels), own);
        });
      });
    });
    const Tensor totals = at::from_blob(sums.data(), {table.channels(), width}, at::kDouble).t();
    int64_t first = 0;
    for (const Tensor& gradient : gradients) {
      gradient.copy_(totals.narrow(0, first, gradient.size(0)));
      first += gradient.size(0);
    }
    return with_layout_of(x, dense, grad_x);
  }
};

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_FRAGMENT(pwlu_det, m) { pwlu::add_pointwise_ops<pwlu::Cpu>(m); }
