// Vectors of 8 floats with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "convert.h"

namespace {

struct Vec {
  static constexpr int kSize = 8;
  __m256 v;

  Vec() = default;
  Vec(__m256 v) : v(v) {}
  explicit Vec(float x) : v(_mm256_set1_ps(x)) {}

  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static Vec load(const pwlu::Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vec load(const pwlu::BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(pwlu::Half* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  void store(pwlu::BFloat16* p) const {  // to the nearest, ties to even; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
};

inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline Vec floor(Vec a) { return _mm256_floor_ps(a.v); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }  // b where a is NaN
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
// max(a, 0) that keeps NaN
inline Vec relu(Vec a) { return _mm256_max_ps(_mm256_setzero_ps(), a.v); }
inline Vec where_negative(Vec condition, Vec a, Vec b) { return _mm256_blendv_ps(b.v, a.v, condition.v); }
inline bool any_nan(Vec a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)) != 0; }

// Pairs (a, b) of one lane each, in the order that unpacking gives; lane_of_pair says whose pair j is.
inline void interleave(Vec a, Vec b, float* p) {
  _mm256_store_ps(p, _mm256_unpacklo_ps(a.v, b.v));
  _mm256_store_ps(p + Vec::kSize, _mm256_unpackhi_ps(a.v, b.v));
}
constexpr int lane_of_pair(int j) {
  constexpr int half = Vec::kSize / 2;
  return j % half / 2 * 4 + j % 2 + (j < half ? 0 : 2);
}

// Sums of a - shift, and of its squares, in double.
struct DoubleSums {
  __m256d shift, sum, square;
  explicit DoubleSums(double shift)
      : shift(_mm256_set1_pd(shift)), sum(_mm256_setzero_pd()), square(_mm256_setzero_pd()) {}
  void add(Vec a) {
    add(_mm256_cvtps_pd(_mm256_castps256_ps128(a.v)));
    add(_mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1)));
  }
  void add(__m256d d) {
    d = _mm256_sub_pd(d, shift);
    sum = _mm256_add_pd(sum, d);
    square = _mm256_fmadd_pd(d, d, square);
  }
  pwlu::RowSums total() const {
    alignas(32) double s[4], q[4];
    _mm256_store_pd(s, sum);
    _mm256_store_pd(q, square);
    return {s[0] + s[1] + s[2] + s[3], q[0] + q[1] + q[2] + q[3]};
  }
};

struct Index {
  __m256i v;
  explicit Index(Vec k) : v(_mm256_cvttps_epi32(k.v)) {}  // rounds towards 0
  Vec to_float() const { return _mm256_cvtepi32_ps(v); }
  void store(int32_t* p) const { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }
};

// Up to three vectors are looked up in registers: a permutation of each, then a choice by bits 3 and 4.
template <int Registers>
struct Table {
  __m256 part[Registers];
  Table(const float* p, int size) {
    alignas(32) float padded[8 * Registers] = {};
    for (int i = 0; i < size; ++i) padded[i] = p[i];
    for (int r = 0; r < Registers; ++r) part[r] = _mm256_load_ps(padded + 8 * r);
  }
  Vec operator[](const Index& index) const {
    __m256 y = _mm256_permutevar8x32_ps(part[0], index.v);
    if constexpr (Registers > 1) {
      const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(index.v, 28));
      y = _mm256_blendv_ps(y, _mm256_permutevar8x32_ps(part[1], index.v), bit3);
    }
    if constexpr (Registers > 2) {
      const __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(index.v, 27));
      y = _mm256_blendv_ps(y, _mm256_permutevar8x32_ps(part[2], index.v), bit4);
    }
    return y;
  }
};
template <>
struct Table<0> {
  const float* p;
  Table(const float* p, int) : p(p) {}
  Vec operator[](const Index& index) const { return _mm256_i32gather_ps(p, index.v, 4); }
};
constexpr int kMaxRegisters = 3;

}  // namespace
