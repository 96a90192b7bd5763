// The pointwise activations of pointwise_math.h by number. No torch in here, and no CUDA.
#pragma once

namespace pwlu {

enum class Activation { kPrelu, kSwish, kAconB, kAconC, kMetaAconPixel, kApl, kPau, kSrelu, kMixture, kSlaf };

// The most parameters of a channel.
constexpr int kMaxParameters = 64;

}  // namespace pwlu
