// Vectors of 16 floats with AVX-512 (F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include "../convert.h"

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
  void store(pwlu::BFloat16* p) const {  // round to nearest, ties to even
    // A NaN result stays NaN: it has the upper bits of an input's NaN or of the processor's default NaN.
    // VCVTNEPS2BF16 would do all of this at once, but treats subnormal numbers as 0.
    const __m512i bits = _mm512_castps_si512(v), below_half = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i rounded = _mm512_mask_add_epi32(below_half, odd, below_half, _mm512_set1_epi32(1));
    const __m256i upper = _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512i packed = _mm512_permutexvar_epi16(_mm512_castsi256_si512(upper), rounded);
    _mm256_storeu_si256((__m256i*)p, _mm512_castsi512_si256(packed));
  }
};

PWLU_INLINE Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
PWLU_INLINE Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
PWLU_INLINE Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
PWLU_INLINE Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
PWLU_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
PWLU_INLINE Vec floor(Vec a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
PWLU_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }  // b if a is NaN
PWLU_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
// max(a, 0), which keeps NaN
PWLU_INLINE Vec relu(Vec a) { return _mm512_max_ps(_mm512_setzero_ps(), a.v); }
PWLU_INLINE Vec where_negative(Vec condition, Vec a, Vec b) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(condition.v)), b.v, a.v);
}
PWLU_INLINE Vec where_positive(Vec condition, Vec a, Vec b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(condition.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v, a.v);
}
PWLU_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a.v); }
// 2^n from the sum of n, 127 and 1.5 * 2^23, whose lowest bits are the biased exponent. n is an integer from -127,
// which gives 0, to 128, which gives infinity.
PWLU_INLINE Vec power_of_two(Vec shifted) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23));
}
PWLU_INLINE bool any_nan(Vec a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }

// Sums of a - shift and of its square, in double, by lane.
struct DoubleSums {
  __m512d shift[2], sum[2], square[2];
  explicit DoubleSums(const double* shifts) {
    for (int i = 0; i < 2; ++i) shift[i] = _mm512_loadu_pd(shifts + 8 * i), sum[i] = square[i] = _mm512_setzero_pd();
  }
  void add(Vec a) {
    const __m512d d[2] = {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)),
                          _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))};
    for (int i = 0; i < 2; ++i) {
      const __m512d shifted = _mm512_sub_pd(d[i], shift[i]);
      sum[i] = _mm512_add_pd(sum[i], shifted);
      square[i] = _mm512_fmadd_pd(shifted, shifted, square[i]);
    }
  }
  void store(pwlu::ShiftedSums* lanes) const {
    for (int i = 0; i < Vec::kSize; ++i) lanes[i] = {sum[i / 8][i % 8], square[i / 8][i % 8]};
  }
};

struct Index {
  __m512i v;
  Index(__m512i v) : v(v) {}
  static Index load(const int32_t* p) { return _mm512_loadu_si512(p); }
  explicit Index(Vec k) : v(_mm512_cvttps_epi32(k.v)) {}  // rounds toward 0
  // 0, stride, 2 * stride, ...
  static Index lanes(int stride) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mullo_epi32(first, _mm512_set1_epi32(stride));
  }
  Vec to_float() const { return _mm512_cvtepi32_ps(v); }
  void store(uint32_t* p) const { _mm512_storeu_si512(p, v); }
  Index times8() const { return _mm512_slli_epi32(v, 3); }
};
PWLU_INLINE Index operator+(const Index& a, const Index& b) { return _mm512_add_epi32(a.v, b.v); }

// Stores the pairs (a, b) of the lanes in the order of kPairLanes.
PWLU_INLINE void store_pairs(Vec a, Vec b, Pair* p) {
  _mm512_storeu_ps(p, _mm512_unpacklo_ps(a.v, b.v));
  _mm512_storeu_ps(p + 8, _mm512_unpackhi_ps(a.v, b.v));
}
constexpr int kPairLanes[] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};

// Loads (a, b) of each lane from the pair at index `at`.
PWLU_INLINE void load_pairs(const float* pairs, const Index& at, Vec& a, Vec& b) {
  const __m512 low = _mm512_castsi512_ps(_mm512_i32gather_epi64(_mm512_castsi512_si256(at.v), pairs, 8));
  const __m512 high = _mm512_castsi512_ps(_mm512_i32gather_epi64(_mm512_extracti64x4_epi64(at.v, 1), pairs, 8));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  a = _mm512_permutex2var_ps(low, even, high);
  b = _mm512_permutex2var_ps(low, odd, high);
}

// A single permutation looks up 16 entries in one register, or 32 in two.
template <int Registers>
struct Table {
  __m512 part[Registers];
  explicit Table(const float* p) {
    for (int r = 0; r < Registers; ++r) part[r] = _mm512_loadu_ps(p + 16 * r);
  }
  Vec operator[](const Index& index) const {
    if constexpr (Registers == 1) return _mm512_permutexvar_ps(index.v, part[0]);
    return _mm512_permutex2var_ps(part[0], index.v, part[Registers - 1]);
  }
};
template <>
struct Table<0> {
  const float* p;
  explicit Table(const float* p) : p(p) {}
  Vec operator[](const Index& index) const { return _mm512_i32gather_ps(index.v, p, 4); }
};
constexpr int kMaxRegisters = 2;

}  // namespace
