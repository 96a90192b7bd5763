// The CPU side of the ops: the choice of kernels, and what they are run on.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "convert.h"
#include "kernels.h"
#include "layout.h"

namespace pwlu {
namespace {

constexpr int kTileRows = 512;

#ifdef PWLU_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The best that the processor has, or a lesser one that PWLU_DET_CPU_KERNELS names.
const Kernels& choose_kernels() {
#ifdef PWLU_X86
  const char* variable = std::getenv("PWLU_DET_CPU_KERNELS");
  const std::string most = variable ? variable : "avx512";
  if (has_avx512() && most == "avx512") return avx512_kernels();
  if (has_avx2() && (most == "avx512" || most == "avx2")) return avx2_kernels();
#endif
  return baseline_kernels();
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

// What a torch dtype is in the kernels: the type of an element, and the arithmetic.
template <typename T>
struct Dtype;
template <>
struct Dtype<float> {
  using Compute = float;
  static const RowKernels<float, float>& rows() { return kernels().f32; }
  static const TileKernels<float>& tiles() { return kernels().tile_f32; }
};
template <>
struct Dtype<BFloat16> {
  using Compute = float;
  static const RowKernels<BFloat16, float>& rows() { return kernels().bf16; }
  static const TileKernels<BFloat16>& tiles() { return kernels().tile_bf16; }
};
template <>
struct Dtype<Half> {
  using Compute = float;
  static const RowKernels<Half, float>& rows() { return kernels().f16; }
  static const TileKernels<Half>& tiles() { return kernels().tile_f16; }
};
template <>
struct Dtype<double> {
  using Compute = double;
  static const RowKernels<double, double>& rows() { return kernels().f64; }
};

template <typename F>
void with_dtype(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(float{});
    case at::kBFloat16:
      return f(BFloat16{});
    case at::kHalf:
      return f(Half{});
    case at::kDouble:
      return f(double{});
    default:
      TORCH_CHECK(false, "pwlu: dtype ", x.scalar_type(), " is not supported");
  }
}

// The functions of all channels, in the kernels' arithmetic.
template <typename R>
class Functions {
 public:
  Functions(const Tensor& points, const Tensor& left_bound, const Tensor& right_bound, const Tensor& left_slope,
            const Tensor& right_slope)
      : count(points.size(0)), num_intervals(int(points.size(1)) - 1) {
    Tensor* kept = kept_.data();
    for (const Tensor& t : {points, left_bound, right_bound, left_slope, right_slope}) {
      *kept++ = t.to(at::kDouble).contiguous();
    }
    tables_.resize(count * 2 * bins());
    for (int64_t c = 0; c < count; ++c) {
      R* value = tables_.data() + c * 2 * bins();
      lines_.push_back(make_line<R>(parameters(c), value, value + bins()));
    }
  }
  int bins() const { return num_intervals + 2; }
  const Line<R>& line(int64_t c) const { return lines_[c]; }
  Parameters parameters(int64_t c) const {
    return {kept_[0].data_ptr<double>() + c * (num_intervals + 1),
            kept_[1].data_ptr<double>()[c],
            kept_[2].data_ptr<double>()[c],
            kept_[3].data_ptr<double>()[c],
            kept_[4].data_ptr<double>()[c],
            num_intervals};
  }

  const int64_t count;
  const int num_intervals;

 private:
  std::array<Tensor, 5> kept_;  // in double
  std::vector<R> tables_;
  std::vector<Line<R>> lines_;
};

// A block of channels_last memory, [rows, channels] of T, and copies of it in which each channel is a row.
template <typename T>
class Tiles {
 public:
  Tiles(const Layout& layout, const Item& item) : layout_(layout), item_(item) {}

  // Calls tile(offset, rows) for each tile of the item.
  template <typename F>
  void for_each(const F& tile) const {
    for (int64_t r = item_.begin; r < item_.end; r += kTileRows) {
      tile(r * layout_.channels + item_.channel, int(std::min<int64_t>(kTileRows, item_.end - r)));
    }
  }
  void gather(const T* from, int rows, float* scratch) const {
    Dtype<T>::tiles().gather(from, layout_.channels, rows, int(item_.num_channels), scratch, kTileRows);
  }
  void scatter(const float* scratch, int rows, T* to) const {
    Dtype<T>::tiles().scatter(scratch, kTileRows, rows, int(item_.num_channels), to, layout_.channels);
  }

 private:
  const Layout& layout_;
  const Item& item_;
};

struct Scratch {
  alignas(64) float elements[kTileChannels * kTileRows];
  float* row(int c) { return elements + c * kTileRows; }
};

// Runs row(channel within the item, offset, n) over an item in double, where channels_last goes element by element.
template <typename F>
void for_rows_f64(const Layout& layout, const Item& item, const F& row) {
  if (!layout.channels_last) return for_rows(layout, item, [&](int64_t at, int64_t n) { row(0, at, n); });
  for (int64_t r = item.begin; r < item.end; ++r) {
    for (int c = 0; c < item.num_channels; ++c) row(c, r * layout.channels + item.channel + c, int64_t(1));
  }
}

template <typename T, typename R>
void forward_item(const Layout& layout, const Item& item, const Functions<R>& functions, const T* x, T* y) {
  if constexpr (std::is_same_v<R, double>) {
    for_rows_f64(layout, item, [&](int c, int64_t at, int64_t n) {
      Dtype<T>::rows().forward(x + at, y + at, n, functions.line(item.channel + c));
    });
  } else if (layout.channels_last) {
    const Tiles<T> tiles(layout, item);
    Scratch x_rows, y_rows;
    tiles.for_each([&](int64_t at, int rows) {
      tiles.gather(x + at, rows, x_rows.elements);
      for (int c = 0; c < item.num_channels; ++c) {
        kernels().f32.forward(x_rows.row(c), y_rows.row(c), rows, functions.line(item.channel + c));
      }
      tiles.scatter(y_rows.elements, rows, y + at);
    });
  } else {
    for_rows(layout, item, [&](int64_t at, int64_t n) {
      Dtype<T>::rows().forward(x + at, y + at, n, functions.line(item.channel));
    });
  }
}

// `moments` gives those of a channel within the item.
template <typename T, typename R, typename F>
void backward_item(const Layout& layout, const Item& item, const Functions<R>& functions, const T* grad, const T* x,
                   T* grad_x, const F& moments) {
  if constexpr (std::is_same_v<R, double>) {
    for_rows_f64(layout, item, [&](int c, int64_t at, int64_t n) {
      const auto& line = functions.line(item.channel + c);
      Dtype<T>::rows().backward(grad + at, x + at, grad_x + at, n, line, moments(c));
    });
  } else if (layout.channels_last) {
    const Tiles<T> tiles(layout, item);
    Scratch g_rows, x_rows;
    tiles.for_each([&](int64_t at, int rows) {
      tiles.gather(grad + at, rows, g_rows.elements);
      tiles.gather(x + at, rows, x_rows.elements);
      for (int c = 0; c < item.num_channels; ++c) {
        const auto& line = functions.line(item.channel + c);
        kernels().f32.backward(g_rows.row(c), x_rows.row(c), g_rows.row(c), rows, line, moments(c));
      }
      tiles.scatter(g_rows.elements, rows, grad_x + at);
    });
  } else {
    for_rows(layout, item, [&](int64_t at, int64_t n) {
      Dtype<T>::rows().backward(grad + at, x + at, grad_x + at, n, functions.line(item.channel), moments(0));
    });
  }
}

// `add` takes the sums of a channel within the item; `shift` has one for each channel.
template <typename T, typename F>
void relu_item(const Layout& layout, const Item& item, const double* shift, const T* x, T* y, const F& add) {
  shift += item.channel;
  if constexpr (std::is_same_v<T, double>) {
    for_rows_f64(layout, item, [&](int c, int64_t at, int64_t n) {
      add(c, Dtype<T>::rows().relu_sums(x + at, y + at, n, shift[c]));
    });
  } else if (layout.channels_last) {
    const Tiles<T> tiles(layout, item);
    Scratch x_rows;
    tiles.for_each([&](int64_t at, int rows) {
      tiles.gather(x + at, rows, x_rows.elements);
      for (int c = 0; c < item.num_channels; ++c) {
        add(c, kernels().f32.relu_sums(x_rows.row(c), x_rows.row(c), rows, shift[c]));
      }
      tiles.scatter(x_rows.elements, rows, y + at);
    });
  } else {
    for_rows(layout, item,
             [&](int64_t at, int64_t n) { add(0, Dtype<T>::rows().relu_sums(x + at, y + at, n, shift[0])); });
  }
}

// A tensor like x, as the ops return it: x's own strides where it is dense.
Tensor with_layout_of(const Tensor& x, const Tensor& dense, const Tensor& result) {
  return x.is_same(dense) ? result : at::empty_like(x).copy_(result);
}

Tensor pwlu_cpu(const Tensor& x, const Tensor& points, const Tensor& left_bound, const Tensor& right_bound,
                const Tensor& left_slope, const Tensor& right_slope) {
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  const Layout layout = layout_of(dense, points.size(0), format);
  const auto items = make_items(layout);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const Functions<typename Dtype<T>::Compute> functions(points, left_bound, right_bound, left_slope, right_slope);
    const T* from = static_cast<const T*>(dense.const_data_ptr());
    T* to = static_cast<T*>(y.mutable_data_ptr());
    for_items(items, layout.numel(), [&](int64_t i) { forward_item(layout, items[i], functions, from, to); });
  });
  return with_layout_of(x, dense, y);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients pwlu_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& points, const Tensor& left_bound,
                            const Tensor& right_bound, const Tensor& left_slope, const Tensor& right_slope) {
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), g = grad.contiguous(format);
  const Tensor grad_x = at::empty_like(dense);
  const Layout layout = layout_of(dense, points.size(0), format);
  const auto items = make_items(layout);
  const int64_t count = points.size(0), num_points = points.size(1), bins = num_points + 1;
  const Tensor grad_points = at::empty({count, num_points}, at::kDouble);
  const Tensor grad_others = at::empty({count, 4}, at::kDouble);

  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const Functions<typename Dtype<T>::Compute> functions(points, left_bound, right_bound, left_slope, right_slope);
    // Moments by item and channel, amounts before moments; then by channel.
    const int64_t per_item = layout.channels_last ? kTileChannels : 1;
    std::vector<double> parts(items.size() * per_item * 2 * bins), sums(count * 2 * bins);
    const auto* from = static_cast<const T*>(dense.const_data_ptr());
    const auto* incoming = static_cast<const T*>(g.const_data_ptr());
    auto* to = static_cast<T*>(grad_x.mutable_data_ptr());
    for_items(items, layout.numel(), [&](int64_t i) {
      backward_item(layout, items[i], functions, incoming, from, to, [&](int c) {
        double* amount = parts.data() + (i * per_item + c) * 2 * bins;
        return Moments{amount, amount + bins};
      });
    });
    for (size_t i = 0; i < items.size(); ++i) {
      for (int64_t c = 0; c < items[i].num_channels; ++c) {
        const double* part = parts.data() + (i * per_item + c) * 2 * bins;
        double* sum = sums.data() + (items[i].channel + c) * 2 * bins;
        for (int64_t j = 0; j < 2 * bins; ++j) sum[j] += part[j];
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      double* amount = sums.data() + c * 2 * bins;
      finish_gradients(functions.parameters(c), functions.line(c), Moments{amount, amount + bins},
                       grad_points.data_ptr<double>() + c * num_points, grad_others.data_ptr<double>() + c * 4);
    }
  });
  const auto other = [&](int64_t i, const Tensor& like) {
    return grad_others.select(1, i).to(like.scalar_type(), /*non_blocking=*/false, /*copy=*/true).contiguous();
  };
  return {with_layout_of(x, dense, grad_x),
          grad_points.to(points.scalar_type()),
          other(0, left_bound),
          other(1, right_bound),
          other(2, left_slope),
          other(3, right_slope)};
}

std::tuple<Tensor, Tensor, Tensor> pwlu_phase1_cpu(const Tensor& x, const Tensor& points, const Tensor&,
                                                   const Tensor&, const Tensor&, const Tensor&) {
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format), y = at::empty_like(dense);
  const int64_t count = points.size(0);
  const Layout layout = layout_of(dense, count, format);
  const auto items = make_items(layout);
  const int64_t per_item = layout.channels_last ? kTileChannels : 1;
  std::vector<RowSums> parts(items.size() * per_item, RowSums{0, 0}), sums(count, RowSums{0, 0});
  std::vector<double> shift(count, 0.0);  // each channel's first element
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    const auto* from = static_cast<const T*>(dense.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    for (const Item& item : items) {
      for (int64_t c = item.channel; c < item.channel + item.num_channels; ++c) {
        const double first = to_float(from[layout.channels_last ? c : c * layout.inner]);
        shift[c] = std::isfinite(first) ? first : 0;
      }
    }
    for_items(items, layout.numel(), [&](int64_t i) {
      relu_item(layout, items[i], shift.data(), from, to,
                [&](int c, RowSums row) { parts[i * per_item + c] += row; });
    });
  });
  for (size_t i = 0; i < items.size(); ++i) {
    for (int64_t c = 0; c < items[i].num_channels; ++c) sums[items[i].channel + c] += parts[i * per_item + c];
  }
  const Tensor mean = at::zeros({count}, at::kDouble), deviation = at::zeros({count}, at::kDouble);
  const double size = double(x.numel()) / double(count);
  for (int64_t c = 0; c < count && size > 0; ++c) {
    mean.data_ptr<double>()[c] = shift[c] + sums[c].sum / size;
    // not std::max, which would hide NaN
    const double squares = sums[c].square - sums[c].sum * (sums[c].sum / size);
    deviation.data_ptr<double>()[c] = squares < 0 ? 0 : squares;
  }
  const auto dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {with_layout_of(x, dense, y), mean.to(dtype), deviation.to(dtype)};
}

std::string cpu_kernels() { return kernels().name; }

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_FRAGMENT(pwlu_det, m) { m.def("cpu_kernels() -> str", &pwlu::cpu_kernels); }

TORCH_LIBRARY_IMPL(pwlu_det, CPU, m) {
  m.impl("pwlu", &pwlu::pwlu_cpu);
  m.impl("pwlu_backward", &pwlu::pwlu_backward_cpu);
  m.impl("pwlu_phase1", &pwlu::pwlu_phase1_cpu);
}
