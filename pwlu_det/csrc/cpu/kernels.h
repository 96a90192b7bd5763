// All kernels for one instruction set, as its file in targets/ provides them.
#pragma once

#include "frelu_kernels.h"
#include "norm_kernels.h"
#include "pointwise_kernels.h"
#include "pwlu_kernels.h"

namespace pwlu {

struct Kernels {
  const char* name;
  PwluKernels pwlu;
  const AllPointwise* pointwise;  // or null for plain torch, which is vectorized itself
  const FreluKernels* frelu;      // likewise
  const NormKernels* norm;        // likewise
};

const Kernels& baseline_kernels();
const Kernels& avx2_kernels();  // these two only on x86-64
const Kernels& avx512_kernels();

}  // namespace pwlu
