// Definitions that the kernels of all ops share. Independent of torch.
#pragma once

#include <cstdint>
#include <type_traits>

// A function that is always inlined, so that files compiled for different processors do not share its code.
#define PWLU_INLINE inline __attribute__((always_inline))
// The same for lambdas.
#define PWLU_INLINED __attribute__((always_inline))

namespace pwlu {

// 16-bit types, stored as bits.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type of the arithmetic on elements of type T.
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

// In channels_last memory, up to kBlockChannels adjacent channels are processed together. Tables with one entry per
// channel have kLanePadding more entries at the end, so that whole vectors can be read.
constexpr int kBlockChannels = 256, kLanePadding = 16;

// Parameters of adjacent channels: parameter k of channel c is at k * stride + c, with kLanePadding more entries
// after the last channel.
struct ChannelParameters {
  int channels, size;
  int64_t stride;
  const float* narrow;
  const double* wide;
};

// Sums over elements of x - shift and of its square. A shift near the mean avoids cancellation.
struct ShiftedSums {
  double sum, square;

  PWLU_INLINE ShiftedSums& operator+=(ShiftedSums other) {
    sum += other.sum;
    square += other.square;
    return *this;
  }
};

// A null pointer, which stands for a gradient that is not requested, stays null.
template <typename T>
PWLU_INLINE T* advance(T* p, int64_t n) {
  return p ? p + n : nullptr;
}

}  // namespace pwlu
