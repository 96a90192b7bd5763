// What all kernels share: the bin rule and the tables that it indexes.
//
// Bins are numbered -1 ... N (section 4.3 of the paper), columns 0 ... N+1 of a table. In every bin the
// function is a line through its knot c_k:
//
//     k = clip(floor((x - B_L) * scale), -1, N)       c_k = max(k, 0) * length + B_L
//     y = value[k] + slope[k] * (x - c_k)
//
// x - c_k is rounded once, relative to itself, also where the bounds are narrow and far from zero. c_k is
// the knot as the kernel's arithmetic finds it; value[k] is what the line is worth there, computed in double,
// so an inexact c_k costs no accuracy.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define PWLU_FN __host__ __device__ __forceinline__
#else
// With internal linkage: files that are compiled for different processors must not share what they make of it.
#define PWLU_FN static inline
#endif

namespace pwlu {

using std::floor;  // the C library's own are for double alone
using std::fma;
using std::nextafter;

// The least width B_R - B_L that is computed with, so that bounds that have crossed can recover.
constexpr double kMinWidth = 1e-4;

// One channel's function, in the kernel's arithmetic R.
template <typename R>
struct Line {
  R left;          // B_L
  R right;         // B_R, at least kMinWidth from it
  R length;        // d, of one interval
  R scale;         // about 1 / d
  R last;          // N
  R right_value;   // the function at `right`
  const R* value;  // [N + 2]
  const R* slope;  // [N + 2]
};

// The bin of x, as a number that is whole. NaN goes to bin -1.
template <typename R>
PWLU_FN R bin_of(R x, R left, R scale, R last) {
  const R u = floor((x - left) * scale);
  return u > R(-1) ? (u < last ? u : last) : R(-1);
}

// The knot c_k that x is measured from.
template <typename R>
PWLU_FN R knot_of(R k, R left, R length) {
  return fma(k > R(0) ? k : R(0), length, left);
}

// The parameters of one channel; points has N + 1.
struct Parameters {
  const double* points;
  double left_bound, right_bound, left_slope, right_slope;
  int num_intervals;

  double length() const {
    const double width = right_bound - left_bound;
    return (width > kMinWidth ? width : kMinWidth) / num_intervals;
  }
  double right_end() const {
    const double least = left_bound + kMinWidth;
    return right_bound > least ? right_bound : least;
  }
  double rise(int k) const { return points[k + 1] - points[k]; }
};

// Where a kernel's knot lies from the exact one: c_k - (B_L + k d), for k = 0 ... N - 1.
template <typename R>
PWLU_FN double knot_error(const Parameters& p, R left, R length, int k) {
  return (double(knot_of<R>(R(k), left, length)) - p.left_bound) - k * p.length();
}

// Fill a channel's table of N + 2 values and slopes, and give its line.
template <typename R>
PWLU_FN Line<R> make_line(const Parameters& p, R* value, R* slope) {
  const int n = p.num_intervals;
  const double d = p.length(), most = std::numeric_limits<R>::max();
  Line<R> line;
  line.left = R(p.left_bound);
  line.right = R(p.right_end());
  line.length = R(d < most ? d : most);
  line.scale = R(1 / d < most ? 1 / d : most);
  line.last = R(n);
  line.value = value;
  line.slope = slope;
  // B_R itself belongs to bin N: round the scale up until it does.
  for (int i = 0; i < 4 && (line.right - line.left) * line.scale < line.last; ++i) {
    line.scale = nextafter(line.scale, std::numeric_limits<R>::max());
  }
  value[0] = R(p.points[0] + p.left_slope * (line.left - p.left_bound));
  slope[0] = R(p.left_slope);
  for (int k = 0; k < n; ++k) {
    slope[k + 1] = R(p.rise(k) / d);
    value[k + 1] = R(p.points[k] + p.rise(k) / d * knot_error(p, line.left, line.length, k));
  }
  slope[n + 1] = R(p.right_slope);
  line.right_value = R(p.points[n] + p.right_slope * (line.right - p.right_end()));
  const double last_knot = knot_of(line.last, line.left, line.length);
  value[n + 1] = R(p.points[n] + p.right_slope * (last_knot - p.right_end()));
  return line;
}

// Sums over the elements of each bin, [N + 2] each: of g, and of g * (x - c_k).
struct Moments {
  double* amount;
  double* moment;
};

// Gradients of one channel's parameters (Table 1 of the paper, summed) from the moments of its bins. Gives
// dY_P (N + 1), then dB_L, dB_R, dK_L, dK_R.
template <typename R>
PWLU_FN void finish_gradients(const Parameters& p, const Line<R>& line, const Moments& m, double* grad_points,
                              double* grad_others) {
  const int n = p.num_intervals;
  const double d = p.length();
  const double last_knot = knot_of(line.last, line.left, line.length);
  const double right_moment = m.moment[n + 1] + (last_knot - p.right_end()) * m.amount[n + 1];
  double left = -p.left_slope * m.amount[0], right = -p.right_slope * m.amount[n + 1];
  for (int j = 0; j <= n; ++j) grad_points[j] = 0;
  grad_points[0] += m.amount[0];
  grad_points[n] += m.amount[n + 1];
  for (int k = 0; k < n; ++k) {
    const double amount = m.amount[k + 1];
    // sum of g * t, t in [0, 1) across the interval
    const double moment = (m.moment[k + 1] + knot_error(p, line.left, line.length, k) * amount) / d;
    grad_points[k] += amount - moment;
    grad_points[k + 1] += moment;
    left += p.rise(k) / d * ((k - n) * amount + moment) / n;
    right -= p.rise(k) / d * (k * amount + moment) / n;
  }
  grad_others[0] = left;
  grad_others[1] = right;
  grad_others[2] = m.moment[0] + (double(line.left) - p.left_bound) * m.amount[0];
  grad_others[3] = right_moment;
}

}  // namespace pwlu
