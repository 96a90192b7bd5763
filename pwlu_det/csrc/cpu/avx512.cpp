// For processors with AVX-512 (F, BW, DQ, VL); see avx2.cpp about the pragma.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

#include "vec_avx512.h"

#include "all_kernels.h"  // over those vectors

namespace pwlu {

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = all_kernels("avx512");
  return kernels;
}

}  // namespace pwlu
