// A channel's function inside a block: the numbers that determine the bin of an x are in registers, and the data of
// the bins are in a table in shared memory. Each block builds its table from the parameters, so tables need no launch
// and are never stale.
#pragma once

#include <type_traits>

#include "../pwlu_math.h"
#include "dispatch.cuh"
#include "pwlu_launch.h"

namespace pwlu {

// The maximum size of a table in shared memory. Functions with more bins are computed without a table.
constexpr int64_t kTableBytes = 36 << 10;

// The parameters of all channels.
template <typename P>
struct ParameterArrays {
  const P *points, *left_bound, *right_bound, *left_slope, *right_slope;
  int num_intervals;

  explicit ParameterArrays(const PwluParameters& f)
      : points(static_cast<const P*>(f.points)),
        left_bound(static_cast<const P*>(f.left_bound)),
        right_bound(static_cast<const P*>(f.right_bound)),
        left_slope(static_cast<const P*>(f.left_slope)),
        right_slope(static_cast<const P*>(f.right_slope)),
        num_intervals(f.num_intervals) {}

  __device__ Parameters<P> of(int64_t channel) const {
    const P left = left_bound[channel], right = right_bound[channel];
    return {points + channel * (num_intervals + 1),
            left,
            right,
            left_slope[channel],
            right_slope[channel],
            num_intervals,
            interval_length(left, right, num_intervals)};
  }
};

// The bin of x plus a constant, by the rule of bin_of, except that it clips first, which gives the same. Adding
// 1.5 * 2^23 rounds a float down to an integer in its low bits; N is far below 2^22 if there is a table.
__device__ __forceinline__ unsigned raw_bin(float x, const Line<float>& line) {
  const float last = x < line.right ? line.last - 0.5f : line.last;
  const float u = fminf(fmaxf((x - line.left) * line.scale, -1.0f), last);
  return __float_as_uint(__fadd_rd(u, 12582912.0f));
}
__device__ __forceinline__ unsigned raw_bin(double x, const Line<double>& line) {
  const double last = x < line.right ? line.last - 0.5 : line.last;
  return unsigned(__double2int_rd(fmin(fmax((x - line.left) * line.scale, -1.0), last)));
}
template <typename R>
constexpr unsigned kFirstRawBin = sizeof(R) == 4 ? 0x4b3fffffu : ~0u;

// An array in shared memory with one Entry per bin, kStride entries apart.
template <typename R, typename Entry, int kStride>
class ByBin {
 public:
  __device__ explicit ByBin(const Entry* first)
      : origin_(opaque(unsigned(reinterpret_cast<const unsigned char*>(first) - shared_memory) -
                       kFirstRawBin<R> * kBytes)) {}

  __device__ __forceinline__ Entry& operator[](unsigned raw_bin) const {
    return *reinterpret_cast<Entry*>(shared_memory + (raw_bin * kBytes + origin_));
  }

 private:
  static constexpr unsigned kBytes = kStride * sizeof(Entry);
  unsigned origin_;  // offset of raw bin 0 in bytes, modulo 2^32
};

// Two numbers that are read and written together.
template <typename R>
struct alignas(2 * sizeof(R)) Pair {
  R first, second;
};

// Loads an entry by explicit 16-byte accesses, since the compiler might load its members one by one.
template <typename Entry>
__device__ __forceinline__ Entry load_whole(const Entry* from) {
  uint4 bits[sizeof(Entry) / sizeof(uint4)];
  for (unsigned i = 0; i < sizeof(Entry) / sizeof(uint4); ++i) bits[i] = reinterpret_cast<const uint4*>(from)[i];
  Entry entry;
  memcpy(&entry, bits, sizeof entry);
  return entry;
}

// Bytes of shared memory for tables of `numbers` numbers per bin, for `lanes` channels.
template <typename R>
__host__ __device__ constexpr int64_t table_bytes(int numbers, int num_intervals, int lanes) {
  return (int64_t(numbers) * (num_intervals + 2) * lanes * sizeof(R) + 15) / 16 * 16;
}

// Whether the channel's function fits in R.
template <typename R, typename P>
__device__ bool channel_fits(const Parameters<P>& p, const Line<R>& line) {
  bool fits = bounds_fit(p, line);
  for (int k = -1; k <= p.num_intervals; ++k) fits &= slope_fits<R>(p, k);
  return fits;
}

// Calls make(index in the table, bin) for this thread's part of the table. Returns whether that part fits in R.
template <int kLanes, typename R, typename P, typename Make>
__device__ bool make_table(const Parameters<P>& p, const Line<R>& line, const Make& make) {
  bool fits = bounds_fit(p, line);
#pragma unroll 1
  for (int i = threadIdx.x; i < (p.num_intervals + 2) * kLanes; i += kThreads) {
    const int k = i / kLanes - 1;
    make(i, k);
    fits &= slope_fits<R>(p, k);
  }
  return fits;
}

// The same function in double and without a table, for channels and results that do not fit in R.
template <typename R, typename P>
class CarefulFunction {
 public:
  __device__ explicit CarefulFunction(const Parameters<P>& p)
      : p_(p), line_(make_line<R>(p)), wide_(make_line<double>(p)), fits_(channel_fits(p, line_)) {}

  __device__ bool fits() const { return fits_; }
  __device__ double value(R x) const {
    return (fits_ ? evaluate_carefully(p_, line_, x) : evaluate_carefully(p_, wide_, double(x))).value;
  }
  __device__ int column(R x) const { return int(fits_ ? double(bin_of(x, line_)) : bin_of(double(x), wide_)) + 1; }
  __device__ double slope(R x) const { return slope_of(p_, column(x) - 1); }
  // x - c_k
  __device__ double distance(R x) const {
    const int k = column(x) - 1;
    return double(x) - (fits_ ? double(center_of(R(k), line_)) : center_of(double(k), wide_));
  }

 private:
  Parameters<P> p_;
  Line<R> line_;
  Line<double> wide_;
  bool fits_;
};

// Calls f(tag of the element type, items). Items are Rows if the layout is channels last and the tables fit.
template <typename F>
auto with_pwlu_items(const Layout& layout, Element element, int num_intervals, const F& f) {
  return with_items(layout, element, layout.channels_last && pwlu_channels_last_fits(element, num_intervals), f);
}
inline bool is_supported(const Layout& layout, Element element, int num_intervals) {
  return !layout.channels_last || layout.inner == 1 || pwlu_channels_last_fits(element, num_intervals);
}

}  // namespace pwlu
