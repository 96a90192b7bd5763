// All kernels of an instruction set, as its file in targets/ provides them.
#pragma once

#include "frelu_kernels.h"
#include "pointwise_kernels.h"
#include "pwlu_kernels.h"

namespace pwlu {

struct Kernels {
  const char* name;
  PwluKernels pwlu;
  const AllPointwise* pointwise;  // or null: plain torch has vectors of its own
  const FreluKernels* frelu;      // likewise
};

const Kernels& baseline_kernels();
const Kernels& avx2_kernels();  // these two on x86-64 alone
const Kernels& avx512_kernels();

}  // namespace pwlu
