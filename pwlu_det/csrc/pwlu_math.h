// What all kernels share: the bin rule, the tables that it indexes, and the gradients from the sums over bins.
//
// Bins are numbered -1 ... N (section 4.3 of the paper), columns 0 ... N+1 of a table. In every bin the
// function is a line through its centre c_k, the middle of the interval; B_L and B_R in the outer bins:
//
//     k = clip(floor((x - B_L) * scale), -1, N)       c_k = clip(k * d + B_L + d / 2, B_L, B_R)
//     y = value[k] + slope[k] * (x - c_k)
//
// x - c_k is rounded once, relative to itself, also where the bounds are narrow and far from zero. c_k is
// the centre as the kernel's arithmetic finds it; value[k] is what the line is worth there, computed in double,
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

template <typename R>
struct Largest;
template <>
struct Largest<float> {
  static constexpr float value = 3.402823466e+38f, smallest_normal = 1.175494351e-38f;
};
template <>
struct Largest<double> {
  static constexpr double value = 1.7976931348623157e+308, smallest_normal = 2.2250738585072014e-308;
};

// One channel's parameters; points has N + 1.
template <typename P>
struct Parameters {
  const P* points;
  P left_bound, right_bound, left_slope, right_slope;
  int num_intervals;
  double length;  // d, of an interval
};

// B_R, at least kMinWidth from B_L.
template <typename P>
PWLU_FN double right_end(const Parameters<P>& p) {
  const double least = double(p.left_bound) + kMinWidth;
  return p.right_bound < least ? least : p.right_bound;
}

// d, the length of an interval.
PWLU_FN double interval_length(double left_bound, double right_bound, int num_intervals) {
  const double width = right_bound - left_bound;
  return (width < kMinWidth ? kMinWidth : width) / num_intervals;
}

// The slope in bin k.
template <typename P>
PWLU_FN double slope_of(const Parameters<P>& p, int k) {
  if (k < 0) return p.left_slope;
  if (k >= p.num_intervals) return p.right_slope;
  return (double(p.points[k + 1]) - double(p.points[k])) / p.length;
}

// The bins of one channel, in the kernel's arithmetic R.
template <typename R>
struct Line {
  R left;    // B_L
  R right;   // B_R, at least kMinWidth from it; the first number from there on
  R length;  // d, of one interval
  R middle;  // of the first interval
  R scale;   // about 1 / d
  R last;    // N
};

template <typename R, typename P>
PWLU_FN Line<R> make_line(const Parameters<P>& p) {
  const double d = p.length, most = Largest<R>::value, right = right_end(p);
  Line<R> line;
  line.left = d == d ? R(p.left_bound) : R(d);  // either bound that is NaN makes all of it NaN
  line.right = R(right);
  // B_L + kMinWidth may be no R, or be as good as B_L. For x the bound is the next R then: B_L itself lies inside.
  if (line.right < right || !(line.right > line.left)) line.right = nextafter(line.right, Largest<R>::value);
  line.length = R(d < most ? d : most);
  line.middle = R(p.left_bound + d / 2);
  line.scale = R(1 / d);
  line.last = R(p.num_intervals);
  // B_R itself belongs to bin N: round the scale up until it does.
#ifdef __CUDACC__
#pragma unroll 1
#endif
  for (int i = 0; i < 4 && (line.right - line.left) * line.scale < line.last; ++i) {
    line.scale = nextafter(line.scale, Largest<R>::value);
  }
  return line;
}

// The bin of x, as a number that is whole. NaN goes to bin -1.
template <typename R>
PWLU_FN R bin_of(R x, const Line<R>& line) {
  const R u = floor((x - line.left) * line.scale);
  return u > R(-1) ? (u < line.last ? u : line.last) : R(-1);
}

// The centre c_k that x is measured from.
template <typename R>
PWLU_FN R center_of(R k, const Line<R>& line) {
  const R c = fma(k, line.length, line.middle);
  return c > line.left ? (c < line.right ? c : line.right) : line.left;
}

// Where a kernel's centre lies from the exact left end of its bin, from B_L in bin -1.
template <typename R, typename P>
PWLU_FN double center_offset(const Parameters<P>& p, const Line<R>& line, int k) {
  const double c = center_of(R(k), line);
  if (k >= p.num_intervals) return c - right_end(p);
  return (c - double(p.left_bound)) - (k < 0 ? 0 : k) * p.length;
}

// What bin k's line is worth at its centre.
template <typename R, typename P>
PWLU_FN double value_of(const Parameters<P>& p, const Line<R>& line, int k) {
  const int start = k < 0 ? 0 : k;
  return double(p.points[start]) + slope_of(p, k) * center_offset(p, line, k);
}

// Whether R holds the line's numbers, and differences between them and x of a like size, and tells the last
// interval's middle from B_R, so that bin N is measured from there. Where it does not, the channel is computed in
// double.
template <typename R, typename P>
PWLU_FN bool bounds_fit(const Parameters<P>& p, const Line<R>& line) {
  const R most = Largest<R>::value / 8;
  return -most < line.left && line.right < most && line.scale > Largest<R>::smallest_normal && p.length < most &&
         center_of(line.last, line) == line.right;
}
template <typename R, typename P>
PWLU_FN bool slope_fits(const Parameters<P>& p, int k) {
  const double slope = slope_of(p, k);
  return -Largest<R>::value <= slope && slope <= Largest<R>::value;
}

// y and its slope in double, for an x or a channel that R does not hold. Works by quarters, for which there is
// always room. A slope of 0 holds the end point's value, also at x = +-infinity.
struct Careful {
  int k;
  double value, slope, distance;
};
template <typename R, typename P>
PWLU_FN Careful evaluate_carefully(const Parameters<P>& p, const Line<R>& line, R x) {
  Careful at;
  const R k = bin_of(x, line), c = center_of(k, line);
  at.k = int(k);
  at.slope = slope_of(p, at.k);
  at.distance = double(x) - double(c);
  const double value = value_of(p, line, at.k), quarter = double(x) / 4 - double(c) / 4;
  at.value = at.slope == 0 && x == x ? value : 4 * (value / 4 + at.slope * quarter);
  return at;
}

// Sums over the elements of each bin, [N + 2] each: of g, and of g * (x - c_k).
struct Moments {
  double* amount;
  double* moment;
};

// The sum of g * t over bin k, with t in [0, 1) across the interval.
template <typename R, typename P>
PWLU_FN double inner_moment(const Parameters<P>& p, const Line<R>& line, const Moments& m, int k) {
  return (m.moment[k + 1] + center_offset(p, line, k) * m.amount[k + 1]) / p.length;
}

// Gradients of one channel's parameters (Table 1 of the paper, summed) from the moments of its bins: of Y_P at
// point j = 0 ... N, ...
template <typename R, typename P>
PWLU_FN double point_gradient(const Parameters<P>& p, const Line<R>& line, const Moments& m, int j) {
  const int n = p.num_intervals;
  double grad = 0;
  if (j == 0) grad += m.amount[0];
  if (j == n) grad += m.amount[n + 1];
  if (j < n) grad += m.amount[j + 1] - inner_moment(p, line, m, j);
  if (j > 0) grad += inner_moment(p, line, m, j - 1);
  return grad;
}

// ... what bin k = -1 ... N adds to those of B_L and B_R, ...
template <typename R, typename P>
PWLU_FN void add_bound_gradients(const Parameters<P>& p, const Line<R>& line, const Moments& m, int k, double* left,
                                 double* right) {
  const int n = p.num_intervals;
  const double slope = slope_of(p, k), amount = m.amount[k + 1];
  if (k < 0) {
    *left -= slope * amount;
  } else if (k >= n) {
    *right -= slope * amount;
  } else {
    const double moment = inner_moment(p, line, m, k), share = slope / n;
    *left += share * ((k - n) * amount + moment);
    *right -= share * (k * amount + moment);
  }
}

// ... of the slope in bin k, K_L for -1 and K_R for N, ...
template <typename R, typename P>
PWLU_FN double slope_gradient(const Parameters<P>& p, const Line<R>& line, const Moments& m, int k) {
  return m.moment[k + 1] + center_offset(p, line, k) * m.amount[k + 1];
}

// ... and of B_L, B_R, K_L, K_R.
template <typename R, typename P>
PWLU_FN void other_gradients(const Parameters<P>& p, const Line<R>& line, const Moments& m, double* grads) {
  grads[0] = grads[1] = 0;
  for (int k = -1; k <= p.num_intervals; ++k) add_bound_gradients(p, line, m, k, &grads[0], &grads[1]);
  grads[2] = slope_gradient(p, line, m, -1);
  grads[3] = slope_gradient(p, line, m, p.num_intervals);
}

}  // namespace pwlu
