// The PWLU ops on a CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "../signatures.h"
#include "../tensors.h"
#include "convert.h"
#include "dispatch.h"
#include "pwlu_functions.h"
#include "items.h"

namespace pwlu {
namespace {

Tensor pwlu_cpu(const Tensor& x, const Tensor& points, const Tensor& left_bound, const Tensor& right_bound,
                const Tensor& left_slope, const Tensor& right_slope) {
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  const Layout layout = layout_of(dense, points.size(0), format);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto& run = kernels().pwlu.of<T>();
    PwluFunctions<Compute<T>> functions({points, left_bound, right_bound, left_slope, right_slope});
    if (layout.channels_last) functions.prepare_blocks();
    const T* from = static_cast<const T*>(dense.const_data_ptr());
    T* to = static_cast<T*>(y.mutable_data_ptr());
    for_items(layout, [&](const Item& item) {
      if (layout.channels_last) {
        const int64_t at = item.begin * layout.channels + item.channel;
        const auto block = functions.block(item.channel, item.num_channels);
        return run.forward_block(from + at, to + at, item.end - item.begin, layout.channels, block);
      }
      for_rows(layout, item,
               [&](int64_t at, int64_t n) { run.forward(from + at, to + at, n, functions[item.channel]); });
    });
  });
  return with_layout_of(x, dense, y);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients pwlu_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& points, const Tensor& left_bound,
                            const Tensor& right_bound, const Tensor& left_slope, const Tensor& right_slope,
                            std::array<bool, 2> output_mask) {
  const auto [with_x, with_parameters] = output_mask;
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), g = grad.contiguous(format);
  const Layout layout = layout_of(dense, points.size(0), format);
  const int64_t count = points.size(0), bins = points.size(1) + 1;
  const int64_t width = with_parameters ? 2 * bins : 0;  // amounts, then moments
  const Tensor grad_x = with_x ? at::empty_like(dense) : Tensor();
  const std::vector<Tensor> parameters{points, left_bound, right_bound, left_slope, right_slope};
  std::vector<Tensor> grads;
  for (const Tensor& p : parameters) grads.push_back(not_computed(p));

  with_dtype(x, [&](auto type) {
    if (!output_mask[0] && !output_mask[1]) return;
    using T = decltype(type);
    const auto& run = kernels().pwlu.of<T>();
    PwluFunctions<Compute<T>> functions(parameters);
    if (layout.channels_last) functions.prepare_blocks();
    const auto* from = static_cast<const T*>(dense.const_data_ptr());
    const auto* incoming = static_cast<const T*>(g.const_data_ptr());
    auto* to = grad_x.defined() ? static_cast<T*>(grad_x.mutable_data_ptr()) : nullptr;
    auto sums = sum_by_channel<double>(layout, count, width, [&](const Item& item, double* own) {
      Moments of_channels[kBlockChannels];
      for (int c = 0; c < item.num_channels && own; ++c) of_channels[c] = {own + c * width, own + c * width + bins};
      const Moments* moments = own ? of_channels : nullptr;
      if (layout.channels_last) {
        const int64_t at = item.begin * layout.channels + item.channel;
        const auto block = functions.block(item.channel, item.num_channels);
        return run.backward_block(incoming + at, from + at, advance(to, at), item.end - item.begin, layout.channels,
                                  block, moments);
      }
      for_rows(layout, item, [&](int64_t at, int64_t n) {
        run.backward(incoming + at, from + at, advance(to, at), n, functions[item.channel], moments);
      });
    });
    if (with_parameters) grads = functions.gradients(sums.data(), parameters);
  });
  return {with_layout_of(x, dense, grad_x), grads[0], grads[1], grads[2], grads[3], grads[4]};
}

std::tuple<Tensor, Tensor, Tensor> pwlu_phase1_cpu(const Tensor& x, const Tensor& points, const Tensor&,
                                                   const Tensor&, const Tensor&, const Tensor&) {
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  const int64_t count = points.size(0);
  const Layout layout = layout_of(dense, count, format);
  const Tensor mean = at::zeros({count}, at::kDouble), deviation = at::zeros({count}, at::kDouble);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    if (x.numel() == 0) return;
    const auto& run = kernels().pwlu.of<T>();
    const auto* from = static_cast<const T*>(dense.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    std::vector<double> shift(count);  // the first element of each channel
    for (int64_t c = 0; c < count; ++c) {
      const double first = to_float(from[layout.channels_last ? c : c * layout.inner]);
      shift[c] = std::isfinite(first) ? first : 0;
    }
    const auto sums = sum_by_channel<ShiftedSums>(layout, count, 1, [&](const Item& item, ShiftedSums* own) {
      if (layout.channels_last) {
        const int64_t at = item.begin * layout.channels + item.channel;
        return run.relu_sums_block(from + at, to + at, item.end - item.begin, layout.channels, item.num_channels,
                                   shift.data() + item.channel, own);
      }
      for_rows(layout, item,
               [&](int64_t at, int64_t n) { *own += run.relu_sums(from + at, to + at, n, shift[item.channel]); });
    });
    const double size = double(x.numel()) / double(count);
    for (int64_t c = 0; c < count; ++c) {
      mean.data_ptr<double>()[c] = shift[c] + sums[c].sum / size;
      // not std::max, which would hide NaN
      const double squares = sums[c].square - sums[c].sum * (sums[c].sum / size);
      deviation.data_ptr<double>()[c] = squares < 0 ? 0 : squares;
    }
  });
  return {with_layout_of(x, dense, y), mean.to(compute_dtype(x)), deviation.to(compute_dtype(x))};
}

std::string cpu_kernels() { return kernels().name; }

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_FRAGMENT(pwlu_det, m) {
  using namespace pwlu;
  m.def("cpu_kernels() -> str", &cpu_kernels);
  define_op<kPwlu, &pwlu_cpu>(m);
  define_op<kPwluBackward, &pwlu_backward_cpu>(m);
  define_op<kPwluPhase1, &pwlu_phase1_cpu>(m);
}
