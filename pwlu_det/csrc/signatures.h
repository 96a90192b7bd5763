// The arguments of the ops of PWLU and Funnel ReLU; pointwise_ops.h has those of the pointwise activations.
#pragma once

#include "checks.h"

namespace pwlu {
namespace {

#define PWLU_PARAMETERS "points: P N+1", "left_bound: P", "right_bound: P", "left_slope: P", "right_slope: P"

constexpr Signature kPwlu{"pwlu", {"x: B C *", PWLU_PARAMETERS}};
constexpr Signature kPwluBackward{"pwlu_backward", {"grad: x", "x: B C *", PWLU_PARAMETERS}};
constexpr Signature kPwluPhase1{"pwlu_phase1", {"x: B C *", PWLU_PARAMETERS}};

#undef PWLU_PARAMETERS

#define PWLU_CONVOLUTION "weight: C 1 3 3", "bias: C"
#define PWLU_NORM "norm_weight: C", "norm_bias: C", "eps"
#define PWLU_SAVED "x: B C H W", "conv: x", "mean: C", "var: C"

constexpr Signature kFrelu{"frelu", {"x: B C H W", PWLU_CONVOLUTION, PWLU_NORM}};
constexpr Signature kFreluBackward{"frelu_backward", {"grad: x", PWLU_SAVED, PWLU_CONVOLUTION, PWLU_NORM}};
constexpr Signature kFreluInference{"frelu_inference", {"x: B C H W", PWLU_CONVOLUTION}};
constexpr Signature kFreluInferenceBackward{"frelu_inference_backward",
                                            {"grad: x", "x: B C H W", "y: x", PWLU_CONVOLUTION}};
constexpr Signature kFreluConvolve{"frelu_convolve", {"x: B C H W", PWLU_CONVOLUTION}};
constexpr Signature kFreluNormalise{"frelu_normalise", {PWLU_SAVED, PWLU_NORM}};
constexpr Signature kFreluNormSums{"frelu_norm_sums", {"grad: x", PWLU_SAVED, PWLU_NORM}};
constexpr Signature kFreluConvolveBackward{"frelu_convolve_backward",
                                           {"grad: x", PWLU_SAVED, PWLU_CONVOLUTION, PWLU_NORM, "norm_means: 2 C"}};

#undef PWLU_CONVOLUTION
#undef PWLU_NORM
#undef PWLU_SAVED

}  // namespace
}  // namespace pwlu
