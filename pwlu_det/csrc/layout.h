// The memory layout of a tensor, as the kernels see it. Independent of torch and CUDA.
#pragma once

#include <cstdint>

namespace pwlu {

// Dense memory: [batch, channels, inner], or [batch, inner, channels] for channels last. If all channels share one
// function, the tensor is a single row, {1, 1, numel}.
struct Layout {
  int64_t batch, channels, inner;
  bool channels_last;

  int64_t numel() const { return batch * channels * inner; }
};

}  // namespace pwlu
