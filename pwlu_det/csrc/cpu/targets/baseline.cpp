// The kernels for any processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vec_baseline.h"

// Use the vectors defined above:
#include "../kernels.h"
#include "../pwlu_vectors.h"

namespace pwlu {

const Kernels& baseline_kernels() {
  static constexpr Kernels kernels{"baseline", pwlu_kernels(), nullptr, nullptr, nullptr};
  return kernels;
}

}  // namespace pwlu
