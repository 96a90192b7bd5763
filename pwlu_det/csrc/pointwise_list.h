// The pointwise activations, one row each: the enum, the tables of kernels, their choice and the ops' registration
// are made from this list. No torch in here, and no CUDA.
#pragma once

namespace pwlu {

// _(op, its formula in pointwise_math.h, its parameters in the order of the op's arguments)
//
// Parameters have the names and shapes of ops/formulas.py; checks.h explains the shapes.
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

// Its enumerators have the names of the ops.
enum class Activation {
#define PWLU_ENUMERATOR(op, ...) op,
  PWLU_FORALL_POINTWISE(PWLU_ENUMERATOR)
#undef PWLU_ENUMERATOR
};

// The most parameters of a channel.
constexpr int kMaxParameters = 64;

}  // namespace pwlu
