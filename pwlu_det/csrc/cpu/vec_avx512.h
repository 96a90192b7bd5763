// Vectors of 16 floats with AVX-512 (F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include "convert.h"

namespace {

struct Vec {
  static constexpr int kSize = 16;
  __m512 v;

  Vec() = default;
  Vec(__m512 v) : v(v) {}
  explicit Vec(float x) : v(_mm512_set1_ps(x)) {}

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static Vec load(const pwlu::Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static Vec load(const pwlu::BFloat16* p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(pwlu::Half* p) const { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  void store(pwlu::BFloat16* p) const {  // to the nearest, ties to even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i upper = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(upper));
  }
};

inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline Vec floor(Vec a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }  // b where a is NaN
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
// max(a, 0) that keeps NaN
inline Vec relu(Vec a) { return _mm512_max_ps(_mm512_setzero_ps(), a.v); }
inline Vec where_negative(Vec condition, Vec a, Vec b) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(condition.v)), b.v, a.v);
}
inline bool any_nan(Vec a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }

// Pairs (a, b) of one lane each, in the order that unpacking gives; lane_of_pair says whose pair j is.
inline void interleave(Vec a, Vec b, float* p) {
  _mm512_store_ps(p, _mm512_unpacklo_ps(a.v, b.v));
  _mm512_store_ps(p + Vec::kSize, _mm512_unpackhi_ps(a.v, b.v));
}
constexpr int lane_of_pair(int j) {
  constexpr int half = Vec::kSize / 2;
  return j % half / 2 * 4 + j % 2 + (j < half ? 0 : 2);
}

// Sums of a - shift, and of its squares, in double.
struct DoubleSums {
  __m512d shift, sum, square;
  explicit DoubleSums(double shift)
      : shift(_mm512_set1_pd(shift)), sum(_mm512_setzero_pd()), square(_mm512_setzero_pd()) {}
  void add(Vec a) {
    add(_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)));
    add(_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1)));
  }
  void add(__m512d d) {
    d = _mm512_sub_pd(d, shift);
    sum = _mm512_add_pd(sum, d);
    square = _mm512_fmadd_pd(d, d, square);
  }
  pwlu::RowSums total() const { return {_mm512_reduce_add_pd(sum), _mm512_reduce_add_pd(square)}; }
};

struct Index {
  __m512i v;
  explicit Index(Vec k) : v(_mm512_cvttps_epi32(k.v)) {}  // rounds towards 0
  Vec to_float() const { return _mm512_cvtepi32_ps(v); }
  void store(int32_t* p) const { _mm512_store_si512(p, v); }
};

// One permutation looks up 16 entries in a register, or 32 in two.
template <int Registers>
struct Table {
  __m512 part[Registers];
  Table(const float* p, int size) {
    alignas(64) float padded[16 * Registers] = {};
    for (int i = 0; i < size; ++i) padded[i] = p[i];
    for (int r = 0; r < Registers; ++r) part[r] = _mm512_load_ps(padded + 16 * r);
  }
  Vec operator[](const Index& index) const {
    if constexpr (Registers == 1) return _mm512_permutexvar_ps(index.v, part[0]);
    return _mm512_permutex2var_ps(part[0], index.v, part[Registers - 1]);
  }
};
template <>
struct Table<0> {
  const float* p;
  Table(const float* p, int) : p(p) {}
  Vec operator[](const Index& index) const { return _mm512_i32gather_ps(index.v, p, 4); }
};
constexpr int kMaxRegisters = 2;

}  // namespace
