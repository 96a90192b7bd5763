// For any processor.
#include <algorithm>

#include "vec_baseline.h"

#include "all_kernels.h"  // over those vectors

namespace pwlu {

const Kernels& baseline_kernels() {
  static constexpr Kernels kernels = all_kernels("baseline");
  return kernels;
}

}  // namespace pwlu
