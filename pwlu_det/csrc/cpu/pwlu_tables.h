// The tables of one channel, and the gradients of its parameters. On maps of few pixels most of the time is spent
// here, so these functions are compiled for each instruction set, and have loops over bins that the compiler
// vectorizes.
#pragma once

#include "convert.h"
#include "pwlu_kernels.h"

namespace {

using pwlu::Line;
using pwlu::Moments;
using pwlu::Parameters;
using pwlu::PwluFunction;

// Calls run(line) with the line, in float or double, that the channel is computed with.
template <typename R, typename Run>
void with_line(const PwluFunction<R>& f, const Run& run) {
  f.fits ? run(f.line) : run(pwlu::make_line<double>(f.parameters));
}

template <typename R>
void prepare(PwluFunction<R>& f, R* value, R* slope) {
  const Parameters<double> p = f.parameters;
  const Line<R> line = pwlu::make_line<R>(p);
  const auto set = [&](int k) PWLU_INLINED {
    value[k + 1] = R(pwlu::value_of(p, line, k));
    slope[k + 1] = R(pwlu::slope_of(p, k));
  };
  set(-1);
  for (int k = 0; k < p.num_intervals; ++k) set(k);
  set(p.num_intervals);
  f.line = line;
  f.value = value;
  f.slope = slope;
  f.fits = pwlu::bounds_fit(p, line);
  for (int i = 0; i < f.bins(); ++i) f.fits &= std::isfinite(slope[i]);
}

template <typename R>
void finish(const PwluFunction<R>& f, const Moments& moments, double* grads) {
  with_line(f, [&](const auto& line) {
    const int num_points = f.parameters.num_intervals + 1;
    for (int j = 0; j < num_points; ++j) grads[j] = pwlu::point_gradient(f.parameters, line, moments, j);
    pwlu::other_gradients(f.parameters, line, moments, grads + num_points);
  });
}

}  // namespace
