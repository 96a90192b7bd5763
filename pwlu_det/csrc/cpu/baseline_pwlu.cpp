// PWLU for any processor.
#include <algorithm>

#include "vec_baseline.h"

#include "pwlu.h"  // over those vectors

namespace pwlu {

const PwluKernels& baseline_pwlu() {
  static constexpr PwluKernels kernels = pwlu_kernels();
  return kernels;
}

}  // namespace pwlu
