// The kernels for processors with AVX-512 (F, BW, DQ, VL); avx2.cpp explains the pragma.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

#include "vec_avx512.h"

// Use the vectors defined above:
#include "../frelu_vectors.h"
#include "../kernels.h"
#include "../norm_vectors.h"
#include "../pointwise_vectors.h"
#include "../pwlu_vectors.h"

namespace pwlu {

const Kernels& avx512_kernels() {
  static constexpr AllPointwise pointwise = all_pointwise();
  static constexpr FreluKernels frelu = frelu_kernels();
  static constexpr NormKernels norm = norm_kernels();
  static constexpr Kernels kernels{"avx512", pwlu_kernels(), &pointwise, &frelu, &norm};
  return kernels;
}

}  // namespace pwlu
