// Converts single elements of any type to float and back.
#pragma once

#include <cstring>

#include "types.h"

namespace {

using pwlu::BFloat16;
using pwlu::Half;

inline double to_float(double x) { return x; }
inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  float f;
  if (rest >= 0x7c00) {  // infinity and NaN
    const uint32_t bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    std::memcpy(&f, &bits, 4);
  } else if (rest >= 0x400) {
    const uint32_t bits = sign | (rest + (112 << 10)) << 13;
    std::memcpy(&f, &bits, 4);
  } else {
    f = std::ldexp(float(rest), -24);
    if (sign) f = -f;
  }
  return f;
}

inline void from_float(float x, float& to) { to = x; }

// Rounds to nearest, ties to even.
inline void from_float(float x, BFloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  to.bits = nan ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void from_float(float x, Half& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) {
    to.bits = uint16_t(sign | 0x7e00);
  } else if (size >= 0x477ff000) {  // 65,520 and more round to infinity
    to.bits = uint16_t(sign | 0x7c00);
  } else if (size >= 0x38800000) {
    to.bits = uint16_t(sign | (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13);
  } else {  // subnormal: adding 0.5 leaves the rounded bits at the bottom
    float f;
    std::memcpy(&f, &size, 4);
    f += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &f, 4);
    to.bits = uint16_t(sign | (rounded - 0x3f000000));
  }
}

template <typename T>
inline void from_double(double x, T& to) {
  from_float(float(x), to);
}
inline void from_double(double x, double& to) { to = x; }

// Two floats that are added together.
typedef float Pair __attribute__((vector_size(8)));

}  // namespace
