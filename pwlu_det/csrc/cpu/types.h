// What the kernels of all ops have in common. No torch in here.
#pragma once

#include <cstdint>
#include <type_traits>

// A function that is a part of whatever calls it, so that no two files share what their compilers make of it.
#define PWLU_INLINE inline __attribute__((always_inline))

namespace pwlu {

// 16-bit types, by their bits.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What elements of type T are computed in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The kernels of an op for elements of each type.
template <template <typename> class Kernels>
struct ByDtype {
  Kernels<float> f32;
  Kernels<BFloat16> bf16;
  Kernels<Half> f16;
  Kernels<double> f64;

  template <typename T>
  const Kernels<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return f32;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return bf16;
    } else if constexpr (std::is_same_v<T, Half>) {
      return f16;
    } else {
      return f64;
    }
  }
};

// In channels_last memory neighbouring channels are worked on together, so many at most. Tables by channel have
// kLanePadding more numbers at the end, so that whole vectors can be read.
constexpr int kBlockChannels = 256, kLanePadding = 16;

// Parameters of neighbouring channels: parameter k of channel c is at k * stride + c, with kLanePadding behind the
// last channel.
struct ChannelParameters {
  int channels, size;
  int64_t stride;
  const float* narrow;
  const double* wide;
};

// Sums over elements of x - shift and of its squares. With a shift near the mean they lose nothing to cancellation.
struct ShiftedSums {
  double sum, square;

  PWLU_INLINE ShiftedSums& operator+=(ShiftedSums other) {
    sum += other.sum;
    square += other.square;
    return *this;
  }
};

// A null pointer, which stands for a gradient that is not asked for, stays one.
template <typename T>
PWLU_INLINE T* advance(T* p, int64_t n) {
  return p ? p + n : nullptr;
}

}  // namespace pwlu
