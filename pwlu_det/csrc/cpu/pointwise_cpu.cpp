// The ops of the pointwise activations on a CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "dispatch.h"
#include "items.h"

namespace pwlu {
namespace {

// The parameters of a call, by coefficient and channel: [size, channels].
class ParameterTable {
 public:
  // `shapes` says of each parameter which of its dimensions numbers the channels: 0 or 1.
  template <size_t N>
  ParameterTable(const std::array<Tensor, N>& parameters, const std::array<int, N>& channel_axis) {
    std::vector<Tensor> rows;
    for (size_t i = 0; i < N; ++i) {
      const Tensor wide = parameters[i].to(at::kDouble);
      rows.push_back(wide.dim() == 1 ? wide.unsqueeze(0) : channel_axis[i] == 0 ? wide.t() : wide);
    }
    wide_ = at::cat(rows).contiguous();
    TORCH_CHECK(size() <= kMaxParameters, "pwlu_det: ", size(), " parameters for each channel; at most ",
                kMaxParameters, " are possible");
    narrow_ = at::constant_pad_nd(wide_.to(at::kFloat), {0, kLanePadding}).contiguous();
    padded_ = at::constant_pad_nd(wide_, {0, kLanePadding}).contiguous();
  }
  int size() const { return int(wide_.size(0)); }
  int64_t channels() const { return wide_.size(1); }
  ChannelParameters of(const Item& item) const {
    return {item.num_channels, size(), padded_.size(1), narrow_.const_data_ptr<float>() + item.channel,
            padded_.const_data_ptr<double>() + item.channel};
  }

 private:
  Tensor wide_, narrow_, padded_;
};

// Calls run(offset, rows, stride) for the memory of an item.
template <typename F>
void for_stretches(const Layout& layout, const Item& item, const F& run) {
  if (layout.channels_last) {
    return run(item.begin * layout.channels + item.channel, item.end - item.begin, layout.channels);
  }
  for_rows(layout, item, [&](int64_t at, int64_t n) { run(at, n, int64_t(1)); });
}

Tensor forward(const PointwiseKernels& kernels, const Tensor& x, const ParameterTable& parameters) {
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  const Layout layout = layout_of(dense, parameters.channels(), format);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto* from = static_cast<const T*>(dense.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    for_items(layout, [&](const Item& item) {
      for_stretches(layout, item, [&](int64_t at, int64_t rows, int64_t stride) {
        Dtype<T>::of(kernels).forward(from + at, to + at, rows, stride, parameters.of(item));
      });
    });
  });
  return with_layout_of(x, dense, y);
}

// Gradients of x, and of the parameters: [size, channels].
std::tuple<Tensor, Tensor> backward(const PointwiseKernels& kernels, const Tensor& grad, const Tensor& x,
                                    const ParameterTable& parameters) {
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), g = grad.contiguous(format), grad_x = at::empty_like(dense);
  const Layout layout = layout_of(dense, parameters.channels(), format);
  const Tensor totals = at::empty({parameters.channels(), parameters.size()}, at::kDouble);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto* from = static_cast<const T*>(dense.const_data_ptr());
    const auto* incoming = static_cast<const T*>(g.const_data_ptr());
    auto* to = static_cast<T*>(grad_x.mutable_data_ptr());
    const auto run = [&](const Item& item, double* sums) {
      for_stretches(layout, item, [&](int64_t at, int64_t rows, int64_t stride) {
        Dtype<T>::of(kernels).backward(incoming + at, from + at, to + at, rows, stride, parameters.of(item), sums);
      });
    };
    const auto sums = sum_by_channel<double>(layout, parameters.channels(), parameters.size(), run);
    std::copy(sums.begin(), sums.end(), totals.data_ptr<double>());
  });
  return {with_layout_of(x, dense, grad_x), totals.t()};
}

// An op with as many parameters as `Ps`, which are all Tensors. Choose gives the kernels for the size of the table.
template <typename Choose, typename... Ps>
struct Op {
  static constexpr size_t kCount = sizeof...(Ps);
  static ParameterTable table(const Ps&... parameters) {
    return ParameterTable(std::array<Tensor, kCount>{parameters...}, Choose::kChannelAxis);
  }

  static Tensor forward(const Tensor& x, const Ps&... parameters) {
    const ParameterTable all = table(parameters...);
    return pwlu::forward(Choose::choose(*kernels().pointwise, all.size()), x, all);
  }

  static std::tuple<Tensor, Ps...> backward(const Tensor& grad, const Tensor& x, const Ps&... parameters) {
    const ParameterTable all = table(parameters...);
    auto [grad_x, grads] = pwlu::backward(Choose::choose(*kernels().pointwise, all.size()), grad, x, all);
    int64_t row = 0;
    size_t i = 0;
    const auto take = [&, grads = grads](const Tensor& parameter) {
      const bool channels_first = Choose::kChannelAxis[i++] == 0 && parameter.dim() == 2;
      const int64_t rows = parameter.dim() == 1 ? 1 : parameter.size(channels_first ? 1 : 0);
      const Tensor own = grads.narrow(0, row, rows);
      row += rows;
      return gradient_of(parameter, channels_first ? own.t() : own);
    };
    return std::tuple<Tensor, Ps...>{grad_x, take(parameters)...};  // braces: from left to right
  }
};

#define PWLU_POINTWISE(NAME, ...)                                                            \
  struct Choose_##NAME {                                                                     \
    static constexpr std::array kChannelAxis{__VA_ARGS__};                                   \
    static const PointwiseKernels& choose(const AllPointwise& all, int) { return all.NAME; } \
  }

PWLU_POINTWISE(prelu, 0);
PWLU_POINTWISE(swish, 0);
PWLU_POINTWISE(acon_b, 0, 0);
PWLU_POINTWISE(acon_c, 0, 0, 0);
PWLU_POINTWISE(meta_acon_pixel, 0, 0);
PWLU_POINTWISE(pau, 0, 0);
PWLU_POINTWISE(srelu, 0, 0, 0, 0);
PWLU_POINTWISE(mixture, 0, 0);
PWLU_POINTWISE(slaf, 0);
struct Choose_apl {
  static constexpr std::array kChannelAxis{1, 1};
  static const PointwiseKernels& choose(const AllPointwise& all, int size) { return size == 6 ? all.apl_3 : all.apl; }
};

template <typename Choose, size_t>
using TensorAt = Tensor;
template <typename Choose, size_t... I>
Op<Choose, TensorAt<Choose, I>...> op_of(std::index_sequence<I...>);

template <typename Choose>
void add_op(torch::Library& m, const std::string& name) {
  using ThisOp = decltype(op_of<Choose>(std::make_index_sequence<Choose::kChannelAxis.size()>()));
  m.impl(name.c_str(), &ThisOp::forward);
  m.impl((name + "_backward").c_str(), &ThisOp::backward);
}

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_IMPL(pwlu_det, CPU, m) {
  using namespace pwlu;
  if (!kernels().pointwise) return;
  add_op<Choose_prelu>(m, "prelu");
  add_op<Choose_swish>(m, "swish");
  add_op<Choose_acon_b>(m, "acon_b");
  add_op<Choose_acon_c>(m, "acon_c");
  add_op<Choose_meta_acon_pixel>(m, "meta_acon_pixel");
  add_op<Choose_apl>(m, "apl");
  add_op<Choose_pau>(m, "pau");
  add_op<Choose_srelu>(m, "srelu");
  add_op<Choose_mixture>(m, "mixture");
  add_op<Choose_slaf>(m, "slaf");
}
