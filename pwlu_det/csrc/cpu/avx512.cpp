// For processors with AVX-512 (F, BW, DQ, VL); see avx2.cpp about the pragma.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

#include "vec_avx512.h"

#include "rows.h"  // over those vectors

namespace pwlu {

const Kernels& avx512_kernels() {
  static const Kernels kernels = [] {
    Kernels all = row_kernels("avx512");
    const Kernels& avx2 = avx2_kernels();  // 8 by 8 is the natural tile for it too
    all.tile_f32 = avx2.tile_f32;
    all.tile_bf16 = avx2.tile_bf16;
    all.tile_f16 = avx2.tile_f16;
    return all;
  }();
  return kernels;
}

}  // namespace pwlu
