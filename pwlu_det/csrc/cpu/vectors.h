// Access to memory as vectors of the type that the including file in targets/ has chosen.
#pragma once

#include "convert.h"

namespace {

// Calls step(from, count) for each whole vector of n elements, and once more for the remaining elements.
template <typename V = Vec, typename Step>
PWLU_INLINE void for_vectors(int64_t n, const Step& step) {
  int64_t i = 0;
  for (; i + V::kSize <= n; i += V::kSize) step(i, int(V::kSize));
  if (i < n) step(i, int(n - i));
}

// A partial vector is padded with zeros.
template <typename T>
PWLU_INLINE Vec load(const T* p, int count) {
  if (count == Vec::kSize) return Vec::load(p);
  T padded[Vec::kSize] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return Vec::load(padded);
}

template <typename T>
PWLU_INLINE void store(Vec v, T* p, int count) {
  if (count == Vec::kSize) return v.store(p);
  T padded[Vec::kSize];
  v.store(padded);
  std::memcpy(p, padded, count * sizeof(T));
}

}  // namespace
