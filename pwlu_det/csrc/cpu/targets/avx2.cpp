// The kernels for processors with AVX2, FMA and F16C: nothing but the instruction set is chosen here. The pragma
// makes this file use it whatever the compiler's flags are. What other files share must not be compiled below it, or
// a linker might choose this file's version for all: so all headers of others come first, and what follows is not
// shared.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#pragma GCC target("avx2,fma,f16c")

#include "vec_avx2.h"

// Over these vectors:
#include "../frelu_vectors.h"
#include "../kernels.h"
#include "../pointwise_vectors.h"
#include "../pwlu_vectors.h"

namespace pwlu {

const Kernels& avx2_kernels() {
  static constexpr AllPointwise pointwise = all_pointwise();
  static constexpr FreluKernels frelu = frelu_kernels();
  static constexpr Kernels kernels{"avx2", pwlu_kernels(), &pointwise, &frelu};
  return kernels;
}

}  // namespace pwlu
