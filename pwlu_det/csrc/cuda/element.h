// The element types, as arguments of the launchers. Needs neither torch nor CUDA.
#pragma once

namespace pwlu {

enum class Element : int { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace pwlu
