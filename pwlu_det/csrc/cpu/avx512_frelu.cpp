// Funnel ReLU for processors with AVX-512 (F, BW, DQ, VL); see avx2_pwlu.cpp about the pragma.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

#include "vec_avx512.h"

#include "frelu.h"  // over those vectors

namespace pwlu {

const FreluKernels& avx512_frelu() {
  static constexpr FreluKernels kernels = frelu_kernels();
  return kernels;
}

}  // namespace pwlu
