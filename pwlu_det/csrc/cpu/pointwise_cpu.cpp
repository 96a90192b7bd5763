// The ops of the pointwise activations on a CPU.
#include "../pointwise_ops.h"

#include <ATen/ATen.h>

#include <vector>

#include "dispatch.h"
#include "items.h"

namespace pwlu {
namespace {

// The parameters of a call, by coefficient and channel: [size, channels].
class ParameterTable {
 public:
  explicit ParameterTable(const ParameterRows& rows)
      : size_(int(count_coefficients(rows))), channels_(rows[0].size(1)) {
    std::vector<Tensor> wide;
    for (const Tensor& row : rows) wide.push_back(row.to(at::kDouble));
    wide_ = at::constant_pad_nd(at::cat(wide), {0, kLanePadding}).contiguous();
    narrow_ = wide_.to(at::kFloat);
  }
  int size() const { return size_; }
  int64_t channels() const { return channels_; }
  ChannelParameters of(const Item& item) const {
    return {item.num_channels, size(), wide_.size(1), narrow_.const_data_ptr<float>() + item.channel,
            wide_.const_data_ptr<double>() + item.channel};
  }

 private:
  int size_;
  int64_t channels_;
  Tensor wide_, narrow_;
};

const PointwiseKernels& kernels_for(Activation activation, int size) {
  const AllPointwise& all = *kernels().pointwise;
  switch (activation) {
    case Activation::kPrelu:
      return all.prelu;
    case Activation::kSwish:
      return all.swish;
    case Activation::kAconB:
      return all.acon_b;
    case Activation::kAconC:
      return all.acon_c;
    case Activation::kMetaAconPixel:
      return all.meta_acon_pixel;
    case Activation::kApl:
      return size == 6 ? all.apl_3 : all.apl;
    case Activation::kPau:
      return all.pau;
    case Activation::kSrelu:
      return all.srelu;
    case Activation::kMixture:
      return all.mixture;
    default:
      return all.slaf;
  }
}

// Calls run(offset, rows, stride) for the memory of an item.
template <typename F>
void for_stretches(const Layout& layout, const Item& item, const F& run) {
  if (layout.channels_last) {
    return run(item.begin * layout.channels + item.channel, item.end - item.begin, layout.channels);
  }
  for_rows(layout, item, [&](int64_t at, int64_t n) { run(at, n, int64_t(1)); });
}

struct Cpu {
  static Tensor forward(Activation activation, const Tensor& x, const ParameterRows& parameters) {
    const ParameterTable table(parameters);
    const PointwiseKernels& kernels = kernels_for(activation, table.size());
    const auto format = format_of(x);
    const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
    const Layout layout = layout_of(dense, table.channels(), format);
    with_dtype(x, [&](auto type) {
      using T = decltype(type);
      const auto* from = static_cast<const T*>(dense.const_data_ptr());
      auto* to = static_cast<T*>(y.mutable_data_ptr());
      for_items(layout, [&](const Item& item) {
        for_stretches(layout, item, [&](int64_t at, int64_t rows, int64_t stride) {
          Dtype<T>::of(kernels).forward(from + at, to + at, rows, stride, table.of(item));
        });
      });
    });
    return with_layout_of(x, dense, y);
  }

  static Tensor backward(Activation activation, const Tensor& grad, const Tensor& x, const ParameterRows& parameters,
                         const ParameterRows& gradients) {
    const ParameterTable table(parameters);
    const PointwiseKernels& kernels = kernels_for(activation, table.size());
    const auto format = format_of(x);
    const Tensor dense = x.contiguous(format), g = grad.contiguous(format), grad_x = at::empty_like(dense);
    const Layout layout = layout_of(dense, table.channels(), format);
    std::vector<double> sums;  // [channels, size]
    with_dtype(x, [&](auto type) {
      using T = decltype(type);
      const auto* from = static_cast<const T*>(dense.const_data_ptr());
      const auto* incoming = static_cast<const T*>(g.const_data_ptr());
      auto* to = static_cast<T*>(grad_x.mutable_data_ptr());
      sums = sum_by_channel<double>(layout, table.channels(), table.size(), [&](const Item& item, double* own) {
        for_stretches(layout, item, [&](int64_t at, int64_t rows, int64_t stride) {
          Dtype<T>::of(kernels).backward(incoming + at, from + at, to + at, rows, stride, table.of(item), own);
        });
      });
    });
    const Tensor totals = at::from_blob(sums.data(), {table.channels(), table.size()}, at::kDouble).t();
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

TORCH_LIBRARY_IMPL(pwlu_det, CPU, m) {
  if (pwlu::kernels().pointwise) pwlu::add_pointwise_ops<pwlu::Cpu>(m);
}
