// For processors with AVX2, FMA and F16C. The pragma makes this file use them whatever the compiler's flags
// are; what other files share must not be compiled below it, so all headers of others come first.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#pragma GCC target("avx2,fma,f16c")

#include "rows_avx2.h"

namespace pwlu {

const Kernels& avx2_kernels() {
  static const Kernels kernels = [] {
    Kernels all = row_kernels("avx2");
    all.tile_f32 = transposing_kernels<float>();
    all.tile_bf16 = transposing_kernels<BFloat16>();
    all.tile_f16 = transposing_kernels<Half>();
    return all;
  }();
  return kernels;
}

}  // namespace pwlu
