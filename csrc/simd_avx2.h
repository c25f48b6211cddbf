// AVX2 + FMA + F16C: two registers per vector.
#pragma once

#include <immintrin.h>

#include "simd.h"

namespace roseinfer {
namespace {

constexpr int REGISTER_ROWS = 4;  // rows whose accumulators stay in registers: sixteen registers
constexpr bool HAS_SIGNED_DOT = true;
constexpr bool HAS_BF16_DOT = false;

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
struct Q {
  __m256i a, b;
};

inline F zero_f() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline __m128i load_128(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
inline F load_half(const uint16_t* p) { return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))}; }
inline void store_half(uint16_t* p, F x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
// Round to nearest, ties to even; NaN stays NaN.
inline __m256i bfloat_words(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_srli_epi32(
      _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(nan), is_nan)), 16);
}
inline void store_bfloat(uint16_t* p, F x) {
  const __m256i packed = _mm256_packus_epi32(bfloat_words(x.a), bfloat_words(x.b));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
inline F load_u8(const uint8_t* p) {
  const __m128i bytes = load_128(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline F load_i8(const int8_t* p) {
  const __m128i bytes = load_128(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline bool has_nan(F x, F y) {
  const __m256 a = _mm256_cmp_ps(x.a, y.a, _CMP_UNORD_Q), b = _mm256_cmp_ps(x.b, y.b, _CMP_UNORD_Q);
  return _mm256_movemask_ps(_mm256_or_ps(a, b)) != 0;
}
inline F round(F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline F keep_lanes(F x, int first, int last, float other) {
  const __m256i low = _mm256_set1_epi32(first - 1), high = _mm256_set1_epi32(last);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), lane8 = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
  const __m256i a = _mm256_and_si256(_mm256_cmpgt_epi32(lane, low), _mm256_cmpgt_epi32(high, lane));
  const __m256i b = _mm256_and_si256(_mm256_cmpgt_epi32(lane8, low), _mm256_cmpgt_epi32(high, lane8));
  const __m256 o = _mm256_set1_ps(other);
  return {_mm256_blendv_ps(o, x.a, _mm256_castsi256_ps(a)), _mm256_blendv_ps(o, x.b, _mm256_castsi256_ps(b))};
}
inline F keep_bits(F x, uint32_t bits, float other) {
  const __m256i word = _mm256_set1_epi32(int(bits)), low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i high = _mm256_slli_epi32(low, 8);
  const __m256i a = _mm256_cmpeq_epi32(_mm256_and_si256(word, low), low);
  const __m256i b = _mm256_cmpeq_epi32(_mm256_and_si256(word, high), high);
  const __m256 o = _mm256_set1_ps(other);
  return {_mm256_blendv_ps(o, x.a, _mm256_castsi256_ps(a)), _mm256_blendv_ps(o, x.b, _mm256_castsi256_ps(b))};
}
inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F scale_by_power(F x, F n) {
  return {_mm256_mul_ps(x.a, power_of_two(n.a)), _mm256_mul_ps(x.b, power_of_two(n.b))};
}
inline float sum(F x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float max_lane(F x) {
  const __m256 h = _mm256_max_ps(x.a, x.b);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

inline I set1_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
template <int COUNT>
inline I shift_right(I x) {
  return {_mm256_srai_epi32(x.a, COUNT), _mm256_srai_epi32(x.b, COUNT)};
}
inline I load_i(const uint32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline void store_i(uint32_t* p, I x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
inline I operator^(I x, I y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
inline void multiply_wide_8(__m256i x, __m256i f, __m256i* low, __m256i* high) {
  const __m256i even = _mm256_mul_epu32(x, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), f);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
inline void multiply_wide(I x, uint32_t factor, I* low, I* high) {
  const __m256i f = _mm256_set1_epi32(int(factor));
  multiply_wide_8(x.a, f, &low->a, &high->a);
  multiply_wide_8(x.b, f, &low->b, &high->b);
}
inline bool any_at_most(I x, uint32_t limit) {
  const __m256i l = _mm256_set1_epi32(int(limit));
  const __m256i a = _mm256_cmpeq_epi32(_mm256_min_epu32(x.a, l), x.a);
  const __m256i b = _mm256_cmpeq_epi32(_mm256_min_epu32(x.b, l), x.b);
  return _mm256_movemask_epi8(_mm256_or_si256(a, b)) != 0;
}
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline int32_t store_i8(int8_t* p, F x) {
  alignas(32) int32_t lanes[16];
  _mm256_store_si256((__m256i*)lanes, _mm256_cvtps_epi32(x.a));
  _mm256_store_si256((__m256i*)(lanes + 8), _mm256_cvtps_epi32(x.b));
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) {
    p[i] = int8_t(lanes[i]);
    total += lanes[i];
  }
  return total;
}

inline Q load_q(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline Q and_q(Q x, int mask) {
  const __m256i m = _mm256_set1_epi8(char(mask));
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
inline Q low_nibbles(Q x) { return and_q(x, 15); }
inline Q high_nibbles(Q x) { return and_q({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}, 15); }
template <int SHIFT>
inline Q two_bits(Q x) {
  return and_q({_mm256_srli_epi16(x.a, SHIFT), _mm256_srli_epi16(x.b, SHIFT)}, 3);
}
template <int SHIFT>
inline Q or_shifted(Q x, Q y) {
  return {_mm256_or_si256(x.a, _mm256_slli_epi16(y.a, SHIFT)), _mm256_or_si256(x.b, _mm256_slli_epi16(y.b, SHIFT))};
}
template <int VALUE>
inline __m256i bits_32(const uint8_t* bits) {
  uint32_t word;
  std::memcpy(&word, bits, 4);
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32(int(word)),
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i select = _mm256_set1_epi64x(int64_t(0x8040201008040201ull));
  const __m256i hit = _mm256_cmpeq_epi8(_mm256_and_si256(spread, select), select);
  return _mm256_and_si256(hit, _mm256_set1_epi8(VALUE));
}
template <int VALUE>
inline Q or_bits(Q x, const uint8_t* bits) {
  return {_mm256_or_si256(x.a, bits_32<VALUE>(bits)), _mm256_or_si256(x.b, bits_32<VALUE>(bits + 4))};
}
template <int J>
inline F byte_of_four(Q x) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * J), mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.b, 8 * J), mask))};
}
inline F first_bfloats(Q x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}
inline F second_bfloats(Q x) {
  const __m256i mask = _mm256_set1_epi32(int(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(x.a, mask)), _mm256_castsi256_ps(_mm256_and_si256(x.b, mask))};
}
// acc[row] += Σ over 4 weights × the 4 int8 activations at `x`. SIGNED: the bytes hold weight + 128.
template <bool SIGNED>
inline __m256i dot4_8(__m256i acc, __m256i weights, __m256i x) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (SIGNED) {  // |w| × (x with w's sign): unsigned bytes × int8 would overflow their 16-bit sums
    const __m256i w = _mm256_xor_si256(weights, _mm256_set1_epi8(char(0x80)));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, ones));
  }
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), ones));
}
template <bool SIGNED>
inline I dot4(I acc, Q weights, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i broadcast = _mm256_set1_epi32(four);
  return {dot4_8<SIGNED>(acc.a, weights.a, broadcast), dot4_8<SIGNED>(acc.b, weights.b, broadcast)};
}

}  // namespace
}  // namespace roseinfer

#include "simd_pairs.h"

namespace roseinfer {
namespace {

inline P pairs_of_i8(const int8_t* p) {
  const Q q = {_mm256_cvtepi8_epi16(load_128(p)), _mm256_cvtepi8_epi16(load_128(p + 16))};
  const auto low = [](__m256i w) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(w, 16), 16)); };
  const auto high = [](__m256i w) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(w, 16)); };
  return pairs_of_floats({low(q.a), low(q.b)}, {high(q.a), high(q.b)});
}

}  // namespace
}  // namespace roseinfer
