// Funnel ReLU for processors with AVX2, FMA and F16C; see avx2_pwlu.cpp about the pragma.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#pragma GCC target("avx2,fma,f16c")

#include "vec_avx2.h"

#include "frelu.h"  // over those vectors

namespace pwlu {

const FreluKernels& avx2_frelu() {
  static constexpr FreluKernels kernels = frelu_kernels();
  return kernels;
}

}  // namespace pwlu
