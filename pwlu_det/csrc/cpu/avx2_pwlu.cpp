// PWLU for processors with AVX2, FMA and F16C. The pragma makes this file use them whatever the compiler's flags
// are; what other files share must not be compiled below it, so all headers of others come first.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#pragma GCC target("avx2,fma,f16c")

#include "vec_avx2.h"

#include "pwlu.h"  // over those vectors

namespace pwlu {

const PwluKernels& avx2_pwlu() {
  static constexpr PwluKernels kernels = pwlu_kernels();
  return kernels;
}

}  // namespace pwlu
