// The PWLU kernels of one instruction set, in a table.
#pragma once

#include "blocks.h"
#include "rows.h"

namespace {

template <typename T>
constexpr pwlu::DtypeKernels<T, float> dtype_kernels() {
  return {forward_any<T>, backward_any<T>, relu_sums_row<T>, forward_block<T>, backward_block<T>, relu_sums_block<T>};
}

constexpr pwlu::PwluKernels pwlu_kernels() {
  return {dtype_kernels<float>(), dtype_kernels<BFloat16>(), dtype_kernels<Half>(), f64_kernels()};
}

}  // namespace
