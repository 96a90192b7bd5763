// Code that all kernels share: how to find a bin, the tables that it indexes, and the gradients from sums over bins.
//
// Bins are numbered -1 ... N (section 4.3 of the paper) and stored in columns 0 ... N+1 of a table. In every bin the
// function is a line, given by its value at a center c_k: the middle of the interval, or B_L and B_R in the outer
// bins.
//
//     k = clip(floor((x - B_L) * scale), -1, N - 1 if x < B_R, else N)
//     c_k = clip(k * d + B_L + d / 2, B_L, B_R)
//     y = value[k] + slope[k] * (x - c_k)
//
// x is compared with B_R because the rounded product may reach N far to the left of it, if B_L is much larger.
//
// x - c_k has a single rounding error, relative to itself, even if the bounds are close together and far from zero.
// c_k is the center as computed in the kernel's arithmetic; value[k] is the value of the line there, computed in
// double, so an inexact c_k costs no accuracy.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define PWLU_FN __host__ __device__ __forceinline__
#else
// Internal linkage: files that are compiled for different processors must not share the compiled functions.
#define PWLU_FN static inline
#endif

namespace pwlu {

using std::floor;  // the functions of the C library take only double
using std::fma;
using std::nextafter;

// The minimum of the width B_R - B_L in computations, so that bounds that have crossed can recover.
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

// The parameters of one channel; points has N + 1 entries.
template <typename P>
struct Parameters {
  const P* points;
  P left_bound, right_bound, left_slope, right_slope;
  int num_intervals;
  double length;  // d, the length of an interval
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

// The bins of one channel, in the kernel's arithmetic type R.
template <typename R>
struct Line {
  R left;    // B_L
  R right;   // B_R, at least kMinWidth from B_L, rounded up
  R length;  // d, the length of an interval
  R middle;  // the middle of the first interval
  R scale;   // about 1 / d
  R last;    // N
};

template <typename R, typename P>
PWLU_FN Line<R> make_line(const Parameters<P>& p) {
  const double d = p.length, most = Largest<R>::value, right = right_end(p);
  Line<R> line;
  line.left = d == d ? R(p.left_bound) : R(d);  // if either bound is NaN, everything is NaN
  line.right = R(right);
  // B_L + kMinWidth may not be representable in R, or may round to B_L. Then B_R is the next R, so B_L is inside.
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

// The bin of x, as an integer of type R. NaN goes to bin -1.
template <typename R>
PWLU_FN R bin_of(R x, const Line<R>& line) {
  const R u = floor((x - line.left) * line.scale), last = x < line.right ? line.last - 1 : line.last;
  return u > R(-1) ? (u < last ? u : last) : R(-1);
}

// The center c_k that x is measured from.
template <typename R>
PWLU_FN R center_of(R k, const Line<R>& line) {
  const R c = fma(k, line.length, line.middle);
  return c > line.left ? (c < line.right ? c : line.right) : line.left;
}

// The offset of a kernel's center from the exact left end of its bin, or from B_L in bin -1.
template <typename R, typename P>
PWLU_FN double center_offset(const Parameters<P>& p, const Line<R>& line, int k) {
  const double c = center_of(R(k), line);
  if (k >= p.num_intervals) return c - right_end(p);
  return (c - double(p.left_bound)) - (k < 0 ? 0 : k) * p.length;
}

// The value of the line in bin k at the bin's center.
template <typename R, typename P>
PWLU_FN double value_of(const Parameters<P>& p, const Line<R>& line, int k) {
  const int start = k < 0 ? 0 : k;
  return double(p.points[start]) + slope_of(p, k) * center_offset(p, line, k);
}

// Whether R can represent the numbers of the line and their differences from an x of similar size, and the center of
// bin N is B_R. If not, the channel is computed in double.
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

// y and its slope in double, for an x or a channel that R cannot represent. It computes with a
// quarter of the values, so that intermediate results do not overflow. With a slope of 0, y is the value of the end
// point, also at x = +-infinity.
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

// The sums of g and of g * (x - c_k) over the elements of each bin, [N + 2] each.
struct Moments {
  double* amount;
  double* moment;
};

// The sum of g * t over bin k, where t in [0, 1) is the position within the interval.
template <typename R, typename P>
PWLU_FN double inner_moment(const Parameters<P>& p, const Line<R>& line, const Moments& m, int k) {
  return (m.moment[k + 1] + center_offset(p, line, k) * m.amount[k + 1]) / p.length;
}

// The next four functions compute the gradients of one channel's parameters (Table 1 of the paper, summed) from the
// moments of its bins. This is the gradient of Y_P at point j = 0 ... N.
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

// Adds the contribution of bin k = -1 ... N to the gradients of B_L and B_R.
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

// The gradient of the slope in bin k: K_L for k = -1 and K_R for k = N.
template <typename R, typename P>
PWLU_FN double slope_gradient(const Parameters<P>& p, const Line<R>& line, const Moments& m, int k) {
  return m.moment[k + 1] + center_offset(p, line, k) * m.amount[k + 1];
}

// The gradients of B_L, B_R, K_L and K_R.
template <typename R, typename P>
PWLU_FN void other_gradients(const Parameters<P>& p, const Line<R>& line, const Moments& m, double* grads) {
  grads[0] = grads[1] = 0;
  for (int k = -1; k <= p.num_intervals; ++k) add_bound_gradients(p, line, m, k, &grads[0], &grads[1]);
  grads[2] = slope_gradient(p, line, m, -1);
  grads[3] = slope_gradient(p, line, m, p.num_intervals);
}

}  // namespace pwlu
