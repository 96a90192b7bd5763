// How a tensor lies in memory, as the kernels see it. No torch in here, and no CUDA.
#pragma once

#include <cstdint>

namespace pwlu {

// Memory that is dense: [batch, channels, inner], or with channels last [batch, inner, channels]. A function that
// all channels share sees one row, {1, 1, numel}.
struct Layout {
  int64_t batch, channels, inner;
  bool channels_last;

  int64_t numel() const { return batch * channels * inner; }
};

}  // namespace pwlu
