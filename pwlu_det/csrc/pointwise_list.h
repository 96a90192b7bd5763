// The pointwise activations, one per row. The enum, the kernel tables, the kernel selection and the registration of
// the ops are generated from this list. Independent of torch and CUDA.
#pragma once

namespace pwlu {

// _(op, formula in pointwise_math.h, parameters in the order of the op's arguments)
//
// The parameters have the same names and shapes as in ops/formulas.py; checks.h explains the shapes.
#define PWLU_FORALL_POINTWISE(_)                                            \
  _(prelu, Prelu, "slope: C")                                               \
  _(apl, Apl<>, "slopes: S C", "offsets: S C")                              \
  _(srelu, Srelu, "left: C", "left_slope: C", "right: C", "right_slope: C") \
  _(mixture, Mixture, "identity_share: C", "relu_share: C")                 \
  _(acon_c, AconC, "p1: C", "p2: C", "beta: C")                             \
  _(acon_b, AconB, "p: C", "beta: C")                                       \
  _(swish, Swish, "beta: C")                                                \
  _(meta_acon_pixel, MetaAconPixel, "p1: C", "p2: C")                       \
  _(slaf, Slaf<>, "coefficients: C S")                                      \
  _(pau, Pau, "numerator: P 6", "denominator: P 4")

// The enumerators have the names of the ops.
enum class Activation {
#define PWLU_ENUMERATOR(op, ...) op,
  PWLU_FORALL_POINTWISE(PWLU_ENUMERATOR)
#undef PWLU_ENUMERATOR
};

// The maximum number of parameters per channel.
constexpr int kMaxParameters = 64;

}  // namespace pwlu
