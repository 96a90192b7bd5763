// PWLU for processors with AVX-512 (F, BW, DQ, VL); see avx2_pwlu.cpp about the pragma.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

#include "vec_avx512.h"

#include "pwlu.h"  // over those vectors

namespace pwlu {

const PwluKernels& avx512_pwlu() {
  static constexpr PwluKernels kernels = pwlu_kernels();
  return kernels;
}

}  // namespace pwlu
