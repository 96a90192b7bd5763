// PWLU's kernels for the vectors of an instruction set.
#pragma once

#include "pwlu_blocks.h"
#include "pwlu_rows.h"

namespace {

template <typename T>
constexpr pwlu::PwluDtype<T> pwlu_dtype() {
  return {prepare<float>,   finish<float>,    forward_any_row<T>,    backward_any_row<T>,
          relu_sums_row<T>, forward_block<T>, backward_any_block<T>, relu_sums_block<T>};
}

constexpr pwlu::PwluKernels pwlu_kernels() {
  return {pwlu_dtype<float>(), pwlu_dtype<BFloat16>(), pwlu_dtype<Half>(), pwlu_f64()};
}

}  // namespace
