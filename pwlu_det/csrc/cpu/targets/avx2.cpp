// The kernels for processors with AVX2, FMA and F16C. This file only chooses the instruction set. The pragma enables
// it regardless of the compiler flags. Code that other files share must not be compiled after the pragma, or the
// linker might choose this file's version for all of them. So all external headers come first, and the code that
// follows is not shared.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#pragma GCC target("avx2,fma,f16c")

#include "vec_avx2.h"

// Use the vectors defined above:
#include "../frelu_vectors.h"
#include "../kernels.h"
#include "../norm_vectors.h"
#include "../pointwise_vectors.h"
#include "../pwlu_vectors.h"

namespace pwlu {

const Kernels& avx2_kernels() {
  static constexpr AllPointwise pointwise = all_pointwise();
  static constexpr FreluKernels frelu = frelu_kernels();
  static constexpr NormKernels norm = norm_kernels();
  static constexpr Kernels kernels{"avx2", pwlu_kernels(), &pointwise, &frelu, &norm};
  return kernels;
}

}  // namespace pwlu
