// Vectors of 8 floats with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "../convert.h"

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
  void store(pwlu::BFloat16* p) const {  // round to nearest, ties to even
    // A NaN result stays NaN: it has the upper bits of an input's NaN or of the processor's default NaN.
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i upper = _mm256_set1_epi64x(0x0f0e0b0a07060302);  // bytes of each half
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(rounded, upper), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
};

PWLU_INLINE Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
PWLU_INLINE Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
PWLU_INLINE Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
PWLU_INLINE Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
PWLU_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
PWLU_INLINE Vec floor(Vec a) { return _mm256_floor_ps(a.v); }
PWLU_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }  // b if a is NaN
PWLU_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
// max(a, 0), which keeps NaN
PWLU_INLINE Vec relu(Vec a) { return _mm256_max_ps(_mm256_setzero_ps(), a.v); }
PWLU_INLINE Vec where_negative(Vec condition, Vec a, Vec b) { return _mm256_blendv_ps(b.v, a.v, condition.v); }
PWLU_INLINE Vec where_positive(Vec condition, Vec a, Vec b) {
  return _mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(condition.v, _mm256_setzero_ps(), _CMP_GT_OQ));
}
PWLU_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
// 2^n from the sum of n, 127 and 1.5 * 2^23, whose lowest bits are the biased exponent. n is an integer from -127,
// which gives 0, to 128, which gives infinity.
PWLU_INLINE Vec power_of_two(Vec shifted) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23));
}
PWLU_INLINE bool any_nan(Vec a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)) != 0; }

// Sums of a - shift and of its square, in double, by lane.
struct DoubleSums {
  __m256d shift[2], sum[2], square[2];
  explicit DoubleSums(const double* shifts) {
    for (int i = 0; i < 2; ++i) shift[i] = _mm256_loadu_pd(shifts + 4 * i), sum[i] = square[i] = _mm256_setzero_pd();
  }
  void add(Vec a) {
    const __m256d d[2] = {_mm256_cvtps_pd(_mm256_castps256_ps128(a.v)),
                          _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1))};
    for (int i = 0; i < 2; ++i) {
      const __m256d shifted = _mm256_sub_pd(d[i], shift[i]);
      sum[i] = _mm256_add_pd(sum[i], shifted);
      square[i] = _mm256_fmadd_pd(shifted, shifted, square[i]);
    }
  }
  void store(pwlu::ShiftedSums* lanes) const {
    for (int i = 0; i < Vec::kSize; ++i) lanes[i] = {sum[i / 4][i % 4], square[i / 4][i % 4]};
  }
};

struct Index {
  __m256i v;
  Index(__m256i v) : v(v) {}
  static Index load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  explicit Index(Vec k) : v(_mm256_cvttps_epi32(k.v)) {}  // rounds toward 0
  // 0, stride, 2 * stride, ...
  static Index lanes(int stride) {
    return _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(stride));
  }
  Vec to_float() const { return _mm256_cvtepi32_ps(v); }
  Index times8() const { return _mm256_slli_epi32(v, 3); }
  void store(uint32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};
PWLU_INLINE Index operator+(const Index& a, const Index& b) { return _mm256_add_epi32(a.v, b.v); }

// Stores the pairs (a, b) of the lanes in the order of kPairLanes.
PWLU_INLINE void store_pairs(Vec a, Vec b, Pair* p) {
  _mm256_storeu_ps(reinterpret_cast<float*>(p), _mm256_unpacklo_ps(a.v, b.v));
  _mm256_storeu_ps(reinterpret_cast<float*>(p + 4), _mm256_unpackhi_ps(a.v, b.v));
}
constexpr int kPairLanes[] = {0, 1, 4, 5, 2, 3, 6, 7};

// Loads (a, b) of each lane from the pair at index `at`.
PWLU_INLINE void load_pairs(const float* pairs, const Index& at, Vec& a, Vec& b) {
  uint32_t offsets[Vec::kSize];
  at.store(offsets);
  const double* p = reinterpret_cast<const double*>(pairs);
  const auto two = [&](int lane) {
    return _mm_castpd_ps(_mm_loadh_pd(_mm_load_sd(p + offsets[lane]), p + offsets[lane + 1]));
  };
  const __m256 even = _mm256_insertf128_ps(_mm256_castps128_ps256(two(0)), two(4), 1);
  const __m256 odd = _mm256_insertf128_ps(_mm256_castps128_ps256(two(2)), two(6), 1);
  a = _mm256_shuffle_ps(even, odd, 0x88);
  b = _mm256_shuffle_ps(even, odd, 0xdd);
}

// A table of up to three vectors is looked up in registers: each is permuted, then bits 3 and 4 select one.
template <int Registers>
struct Table {
  __m256 part[Registers];
  explicit Table(const float* p) {
    for (int r = 0; r < Registers; ++r) part[r] = _mm256_loadu_ps(p + 8 * r);
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
  explicit Table(const float* p) : p(p) {}
  Vec operator[](const Index& index) const { return _mm256_i32gather_ps(p, index.v, 4); }
};
constexpr int kMaxRegisters = 3;

}  // namespace
