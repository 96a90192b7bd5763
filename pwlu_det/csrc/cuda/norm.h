// A batch norm, as an argument of the launchers. Needs neither torch nor CUDA.
#pragma once

namespace pwlu {

// All arrays are [channels], in double if the elements are, and in float otherwise.
struct Norm {
  const void *mean, *var, *weight, *bias;
  double eps;
};

}  // namespace pwlu
