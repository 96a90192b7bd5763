// The types of a tensor's elements, as the launchers take them. No torch in here, and no CUDA.
#pragma once

namespace pwlu {

enum class Element : int { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace pwlu
