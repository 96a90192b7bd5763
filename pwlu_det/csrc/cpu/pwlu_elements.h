// PWLU's kernels that process one element at a time: for float64, and for values that float cannot represent.
#pragma once

#include "pwlu_tables.h"

namespace {

using pwlu::kLanePadding;
using pwlu::PwluBlock;
using pwlu::ShiftedSums;

inline void add_to(const Moments& moments, int column, double g, double distance) {
  moments.amount[column] += g;
  moments.moment[column] += g * distance;
}

// Computes y in double, for all elements or only for those whose y is not finite yet.
template <typename T>
void forward_carefully(const T* x, T* y, int64_t n, int64_t stride, const PwluFunction<float>& f, bool all) {
  with_line(f, [&](auto line) {
    using R = decltype(line.left);
    for (int64_t i = 0; i < n * stride; i += stride) {
      if (!all && std::isfinite(to_float(y[i]))) continue;
      from_double(pwlu::evaluate_carefully(f.parameters, line, R(to_float(x[i]))).value, y[i]);
    }
  });
}

// Either grad_x or moments may be null, here and below.
template <typename T>
void backward_carefully(const T* grad, const T* x, T* grad_x, int64_t n, int64_t stride, const PwluFunction<float>& f,
                        const Moments* moments) {
  with_line(f, [&](auto line) {
    using R = decltype(line.left);
    for (int64_t i = 0; i < n * stride; i += stride) {
      const double g = to_float(grad[i]);
      const pwlu::Careful at = pwlu::evaluate_carefully(f.parameters, line, R(to_float(x[i])));
      // If float can hold the slope, compute as elsewhere: no element's result may depend on its neighbors.
      if (grad_x) from_float(f.fits ? float(g) * f.slope[at.k + 1] : float(g * at.slope), grad_x[i]);
      if (moments) add_to(*moments, at.k + 1, g, at.distance);
    }
  });
}

inline void forward_f64(const double* x, double* y, int64_t n, int64_t stride, const PwluFunction<double>& f) {
  for (int64_t i = 0; i < n * stride; i += stride) {
    const double k = pwlu::bin_of(x[i], f.line);
    y[i] = f.value[int(k) + 1] + f.slope[int(k) + 1] * (x[i] - pwlu::center_of(k, f.line));
    if (!std::isfinite(y[i])) y[i] = pwlu::evaluate_carefully(f.parameters, f.line, x[i]).value;
  }
}

inline void backward_f64(const double* grad, const double* x, double* grad_x, int64_t n, int64_t stride,
                         const PwluFunction<double>& f, const Moments* moments) {
  for (int64_t i = 0; i < n * stride; i += stride) {
    const double k = pwlu::bin_of(x[i], f.line);
    const int column = int(k) + 1;
    if (grad_x) grad_x[i] = grad[i] * f.slope[column];
    if (moments) add_to(*moments, column, grad[i], x[i] - pwlu::center_of(k, f.line));
  }
}

inline ShiftedSums relu_sums_f64(const double* x, double* y, int64_t n, int64_t stride, double shift) {
  ShiftedSums sums{0, 0};
  for (int64_t i = 0; i < n * stride; i += stride) {
    const double shifted = x[i] - shift;
    y[i] = x[i] < 0 ? 0 : x[i];
    sums.sum += shifted;
    sums.square += shifted * shifted;
  }
  return sums;
}

constexpr pwlu::PwluDtype<double> pwlu_f64() {
  return {
      prepare<double>,
      finish<double>,
      [](const double* x, double* y, int64_t n, const PwluFunction<double>& f) { forward_f64(x, y, n, 1, f); },
      [](const double* grad, const double* x, double* grad_x, int64_t n, const PwluFunction<double>& f,
         const Moments* moments) { backward_f64(grad, x, grad_x, n, 1, f, moments); },
      [](const double* x, double* y, int64_t n, double shift) { return relu_sums_f64(x, y, n, 1, shift); },
      [](const double* x, double* y, int64_t rows, int64_t stride, const PwluBlock<double>& block) {
        for (int c = 0; c < block.channels; ++c) forward_f64(x + c, y + c, rows, stride, block.functions[c]);
      },
      [](const double* grad, const double* x, double* grad_x, int64_t rows, int64_t stride,
         const PwluBlock<double>& block, const Moments* moments) {
        for (int c = 0; c < block.channels; ++c) {
          backward_f64(grad + c, x + c, pwlu::advance(grad_x, c), rows, stride, block.functions[c],
                       pwlu::advance(moments, c));
        }
      },
      [](const double* x, double* y, int64_t rows, int64_t stride, int channels, const double* shift,
         ShiftedSums* sums) {
        for (int c = 0; c < channels; ++c) sums[c] += relu_sums_f64(x + c, y + c, rows, stride, shift[c]);
      },
  };
}

}  // namespace
