// The pointwise activations for processors with AVX-512 (F, BW, DQ, VL); see avx2_pwlu.cpp about the pragma.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

#include "vec_avx512.h"

#include "pointwise.h"  // over those vectors

namespace pwlu {

const AllPointwise& avx512_pointwise() {
  static constexpr AllPointwise kernels = all_pointwise();
  return kernels;
}

}  // namespace pwlu
