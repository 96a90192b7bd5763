// For any processor.
#include "vec_baseline.h"

#include "rows.h"  // over those vectors

namespace pwlu {

const Kernels& baseline_kernels() {
  static const Kernels kernels = [] {
    Kernels all = row_kernels("baseline");
    all.tile_f32 = tile_kernels<float>();
    all.tile_bf16 = tile_kernels<BFloat16>();
    all.tile_f16 = tile_kernels<Half>();
    return all;
  }();
  return kernels;
}

}  // namespace pwlu
