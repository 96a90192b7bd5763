#include <utility>

#include "pwlu_backward.cuh"

namespace pwlu {
namespace {

constexpr int64_t kSharedBytes = 48 << 10;  // available to a block on every GPU without opting in to more

// The smallest possible number of windows of about the same size, and the shared memory that they need. If no sums
// are needed, there is a single window without columns.
template <typename R, int kLanes>
std::pair<Windows, int64_t> make_windows(int num_intervals, bool sums) {
  constexpr int64_t kColumn = kThreads * sizeof(Pair<R>);
  const int64_t table = table_bytes<R>(PwluBackwardTable<R, kLanes>::kNumbers, num_intervals, kLanes);
  const bool use_table = table <= kTableBytes;
  if (!sums) return {{1, 0, use_table}, use_table ? table : 0};
  const int columns = num_intervals + 2, most = use_table ? int((kSharedBytes - table) / kColumn) : kThreads;
  const int count = (columns + most - 1) / most, size = (columns + count - 1) / count;
  return {{count, size, use_table}, use_table ? table + size * kColumn : 0};
}

}  // namespace

int64_t pwlu_backward_workspace(const Layout& layout, Element element, int num_intervals) {
  return with_pwlu_items(layout, element, num_intervals, [&](auto, const auto& items) -> int64_t {
    return items.channels() * 2 * (num_intervals + 2) * (items.items_of_channel() + 1);
  });
}

int launch_pwlu_backward(const Layout& layout, Element element, const PwluParameters& parameters, const void* grad,
                         const void* x, void* grad_x, const PwluGradients* gradients, double* workspace,
                         void* stream) {
  const int n = parameters.num_intervals;
  if (!is_supported(layout, element, n)) return kInvalidValue;
  return with_pwlu_items(layout, element, n, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    using Items = std::decay_t<decltype(items)>;
    const auto [windows, bytes] = make_windows<R, Items::kLanes>(n, gradients != nullptr);
    const ParameterArrays<R> arrays(parameters);
    const Partials partials(workspace, n, items.items_of_channel());
    const auto kernel = gradients ? pwlu_backward_kernel<true, T, Items> : pwlu_backward_kernel<false, T, Items>;
    const int status =
        launch(kernel, items.items() * windows.count, kThreads, bytes, stream, items, static_cast<const T*>(grad),
               static_cast<const T*>(x), static_cast<T*>(grad_x), arrays, windows, partials);
    if (status != 0 || !gradients) return status;
    double* sums = workspace + items.channels() * 2 * (n + 2) * items.items_of_channel();
    const int threads = items.items_of_channel() > kWarp ? 1024 : kThreads;
    return launch(pwlu_finish_kernel<R, R>, items.channels(), threads, threads * int64_t(sizeof(double)), stream,
                  arrays, partials, sums, GradientArrays<R>(*gradients));
  });
}

}  // namespace pwlu
