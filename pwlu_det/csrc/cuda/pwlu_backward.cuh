// Table 1: dx and the gradients of all parameters, in two steps. The first computes the sums of g ("amounts") and of
// g * (x - c_k) ("moments") for each item and bin. The second adds up the items of each channel and computes the
// gradients from the sums. Each thread has its own bins in shared memory, so no atomics are needed.
#pragma once

#include <utility>

#include "inputs.cuh"
#include "pwlu_tables.cuh"

namespace pwlu {

// If the bins do not all fit in shared memory, they are divided into windows, with one block per item and window.
struct Windows {
  int count, size;  // size in columns; column k + 1 is bin k
  bool use_table;

  __device__ int number() const { return int(blockIdx.x) % count; }
  __device__ int first() const { return number() * size; }
  __device__ int columns(int num_intervals) const { return min(size, num_intervals + 2 - first()); }
};

// Shared memory: slope and center, [bin][lane], then the sums of g and of g * (x - c_k) for the bins of the window,
// [bin][thread].
template <typename R, int kLanes>
struct PwluBackwardTable {
  static constexpr int kNumbers = 2;

  __device__ explicit PwluBackwardTable(int num_intervals)
      : lines(reinterpret_cast<Pair<R>*>(shared_memory)),
        sums(reinterpret_cast<Pair<R>*>(shared_memory + table_bytes<R>(kNumbers, num_intervals, kLanes))) {}

  template <typename P>
  __device__ bool make(const Parameters<P>& p, const Line<R>& line) const {
    return make_table<kLanes>(p, line, [&](int i, int k) { lines[i] = {R(slope_of(p, k)), center_of(R(k), line)}; });
  }

  Pair<R>*lines, *sums;
};

// kSums: whether the parameters' gradients are computed, too.
template <int kLanes, bool kSums, typename R>
struct PwluBackwardBody {
  ByBin<R, Pair<R>, kLanes> lines;
  ByBin<R, Pair<R>, kThreads> sums;  // this thread's own
  Line<R> line;
  unsigned first, columns;  // of the window, as a raw bin

  __device__ PwluBackwardBody(const PwluBackwardTable<R, kLanes>& table, const Line<R>& line, int first, int columns)
      : lines(table.lines + threadIdx.x % kLanes),
        sums(table.sums + int(threadIdx.x) - first * kThreads),
        line(line),
        first(kFirstRawBin<R> + first),
        columns(columns) {}

  // in is {x, g}.
  __device__ __forceinline__ R operator()(const R (&in)[2]) {
    const R x = in[0], g = in[1];
    const unsigned bin = raw_bin(x, line);
    const Pair<R> at = lines[bin];  // slope, center
    if (kSums && bin - first < columns) {
      Pair<R> sum = sums[bin];
      sum.first += g;
      sum.second = fma(g, x - at.second, sum.second);
      sums[bin] = sum;
    }
    return g * at.first;
  }
};

// The sums of all items: [channel][amounts by column, moments by column][item].
class Partials {
 public:
  __host__ __device__ Partials(double* numbers, int num_intervals, int64_t items)
      : numbers_(numbers), columns_(num_intervals + 2), items_(items) {}

  __device__ void set(int64_t channel, int64_t item, int column, double amount, double moment) const {
    numbers_[(channel * 2 * columns_ + column) * items_ + item] = amount;
    numbers_[((channel * 2 + 1) * columns_ + column) * items_ + item] = moment;
  }
  __device__ const double* of(int64_t channel, int sum) const {
    return numbers_ + (channel * 2 * columns_ + sum) * items_;
  }
  __device__ int columns() const { return columns_; }
  __device__ int64_t items() const { return items_; }

 private:
  double* numbers_;
  int columns_;
  int64_t items_;
};

// Recomputes the sums of an item in double, with one thread per bin, and its dx if the channel does not fit in R.
// Returns the input's own sums. It takes the kernel's own arguments, so that the kernel needs no registers for it.
template <bool kSums, typename Input, typename Items, typename T>
__device__ __noinline__ typename Input::Sums recompute_pwlu_backward(Items items, const T* grad, Input input,
                                                                     T* grad_x, ParameterArrays<Real<T>> arrays,
                                                                     Windows windows, Partials partials) {
  using R = Real<T>;
  constexpr int kLanes = Items::kLanes;
  const auto item = items.item(blockIdx.x / windows.count);
  const CarefulFunction<R, R> function(arrays.of(item.channel));
  const auto x = input.of(item.channel);
  const bool write = grad_x && !(windows.use_table && function.fits());
  typename Input::Sums input_sums{};
  if ((write || Input::kHasSums) && windows.number() == 0) {
    item.for_each(threadIdx.x / kLanes, kThreads / kLanes, [&](int64_t at) {
      const double by_x = double(to_real(grad[at])) * function.slope(to_real(x[at]));
      if (write) from_real(R(by_x), grad_x[at]);
      input.add(x, at, by_x, input_sums);
    });
  }
  const int columns = kSums ? windows.columns(arrays.num_intervals) : 0;
  for (int c = threadIdx.x / kLanes; c < columns; c += kThreads / kLanes) {
    const int column = windows.first() + c;
    double amount = 0, moment = 0;
    item.for_each(0, 1, [&](int64_t at) {
      const R value = to_real(x[at]);
      if (function.column(value) != column) return;
      amount += double(to_real(grad[at]));
      moment += double(to_real(grad[at])) * function.distance(value);
    });
    if (item.active()) partials.set(item.channel, item.index, column, amount, moment);
  }
  return input_sums;
}

// grad_x is null if it is not needed. kSums: whether the sums are needed.
template <bool kSums, typename Input, typename Items, typename T = typename Input::Element>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pwlu_backward_kernel(Items items, const T* grad, Input input, T* grad_x, ParameterArrays<Real<T>> arrays,
                         Windows windows, Partials partials) {
  using R = Real<T>;
  constexpr int kLanes = Items::kLanes;
  const int columns = kSums ? windows.columns(arrays.num_intervals) : 0;
  const auto item = items.item(blockIdx.x / windows.count);
  typename Input::Sums input_sums;
  bool good = false;
  if (windows.use_table) {
    const auto p = arrays.of(item.channel);
    const PwluBackwardTable<R, kLanes> table(p.num_intervals);
    PwluBackwardBody<kLanes, kSums, R> body(table, make_line<R>(p), windows.first(), columns);
    for (int c = 0; c < columns; ++c) table.sums[c * kThreads + threadIdx.x] = {0, 0};
    good = table.make(p, body.line);
    __syncthreads();
    input.sweep(item, grad, grad_x, !kSums || (grad_x && windows.number() == 0), body, input_sums);
    good &= input_sums.finite();
    __syncthreads();
    // Each warp adds up a column, each lane over the threads of its channel.
    for (int c = threadIdx.x / kWarp; c < columns; c += kWarps) {
      double amount = 0, moment = 0;
      for (int t = threadIdx.x % kWarp; t < kThreads; t += kWarp) {
        amount += double(table.sums[c * kThreads + t].first);
        moment += double(table.sums[c * kThreads + t].second);
      }
      if (kLanes == 1) amount = warp_sum(amount), moment = warp_sum(moment);
      good &= is_finite(amount) && is_finite(moment);
      if (item.active() && threadIdx.x % kWarp < kLanes) {
        partials.set(item.channel, item.index, windows.first() + c, amount, moment);
      }
    }
  }
  if (__syncthreads_or(!good)) {
    input_sums = recompute_pwlu_backward<kSums>(items, grad, input, grad_x, arrays, windows, partials);
  }
  if (windows.number() == 0) input.store(items, item, input_sums);
}

// The parameters' gradients of all channels.
template <typename P>
struct GradientArrays {
  P *points, *left_bound, *right_bound, *left_slope, *right_slope;

  explicit GradientArrays(const PwluGradients& g)
      : points(static_cast<P*>(g.points)),
        left_bound(static_cast<P*>(g.left_bound)),
        right_bound(static_cast<P*>(g.right_bound)),
        left_slope(static_cast<P*>(g.left_slope)),
        right_slope(static_cast<P*>(g.right_slope)) {}
};

// Computes the gradients of a channel from its moments, by one block.
template <typename R, typename P>
__device__ void finish_channel(const Parameters<P>& p, const Line<R>& line, const Moments& moments, int64_t channel,
                               const GradientArrays<P>& gradients) {
  const int n = p.num_intervals;
  double left = 0, right = 0;
  for (int k = int(threadIdx.x) - 1; k <= n; k += blockDim.x) {
    if (k >= 0) gradients.points[channel * (n + 1) + k] = P(point_gradient(p, line, moments, k));
    add_bound_gradients(p, line, moments, k, &left, &right);
  }
  double* scratch = reinterpret_cast<double*>(shared_memory);
  left = block_sum<1>(left, scratch);
  right = block_sum<1>(right, scratch);
  if (threadIdx.x > 0) return;
  gradients.left_bound[channel] = P(left);
  gradients.right_bound[channel] = P(right);
  gradients.left_slope[channel] = P(slope_gradient(p, line, moments, -1));
  gradients.right_slope[channel] = P(slope_gradient(p, line, moments, n));
}

// Adds up the items of each channel into `sums`, [channel][amounts, moments], and computes the gradients. One block
// per channel, of any number of warps.
template <typename R, typename P>
__global__ void pwlu_finish_kernel(ParameterArrays<P> arrays, Partials partials, double* sums,
                                   GradientArrays<P> gradients) {
  const int64_t channel = blockIdx.x;
  const auto p = arrays.of(channel);
  const int n = p.num_intervals, bins = n + 2;
  sums += channel * 2 * bins;
  for (int i = threadIdx.x / kWarp; i < 2 * bins; i += blockDim.x / kWarp) {
    const double sum = warp_total(partials.of(channel, i), partials.items());
    if (threadIdx.x % kWarp == 0) sums[i] = sum;
  }
  const Moments moments{sums, sums + bins};
  const Line<R> line = make_line<R>(p);
  bool fits = bounds_fit(p, line);
  for (int k = int(threadIdx.x) - 1; k <= n; k += blockDim.x) fits &= slope_fits<R>(p, k);

  // This is also the barrier between writing and reading the sums. The sums of a channel that does not fit in R are
  // relative to the bins' centers in double.
  if (__syncthreads_and(fits)) {
    finish_channel(p, line, moments, channel, gradients);
  } else {
    finish_channel(p, make_line<double>(p), moments, channel, gradients);
  }
}

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

// Input<T> is made from `source`. Without kSums, `gradients` is not used.
template <bool kSums, template <typename> class Input, typename Source>
int launch_pwlu_backward_of(const Layout& layout, Element element, const PwluParameters& parameters, const void* grad,
                            const Source& source, void* grad_x, const PwluGradients* gradients, double* workspace,
                            void* stream) {
  const int n = parameters.num_intervals;
  if (!is_supported(layout, element, n)) return kInvalidValue;
  return with_pwlu_items(layout, element, n, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    using Items = std::decay_t<decltype(items)>;
    const auto [windows, bytes] = make_windows<R, Items::kLanes>(n, kSums);
    const ParameterArrays<R> arrays(parameters);
    const Partials partials(workspace, n, items.items_of_channel());
    const int status = launch(pwlu_backward_kernel<kSums, Input<T>, Items>, items.items() * windows.count, kThreads,
                              max(bytes, Input<T>::kSharedBytes), stream, items, static_cast<const T*>(grad),
                              Input<T>(source), static_cast<T*>(grad_x), arrays, windows, partials);
    if (status != 0 || !kSums) return status;
    double* sums = workspace + items.channels() * 2 * (n + 2) * items.items_of_channel();
    const int threads = items.items_of_channel() > kWarp ? 1024 : kThreads;
    return launch(pwlu_finish_kernel<R, R>, items.channels(), threads, threads * int64_t(sizeof(double)), stream,
                  arrays, partials, sums, GradientArrays<R>(*gradients));
  });
}

}  // namespace pwlu
