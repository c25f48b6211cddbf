// AVX-512 F/BW/DQ/VL/VNNI: one register per vector.
#pragma once

#include <immintrin.h>

#include "simd.h"

namespace roseinfer {
namespace {

constexpr int REGISTER_ROWS = 16;  // rows whose accumulators stay in registers: thirty-two registers
constexpr bool HAS_SIGNED_DOT = false;
#if defined(__AVX512BF16__)
constexpr bool HAS_BF16_DOT = true;
#else
constexpr bool HAS_BF16_DOT = false;
#endif

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};
struct Q {
  __m512i v;
};

inline F zero_f() { return {_mm512_setzero_ps()}; }
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline F load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_half(uint16_t* p, F a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Round to nearest, ties to even; NaN stays NaN. The bf16 unit takes subnormals for zero.
#if defined(__AVX512BF16__)
inline void store_bfloat(uint16_t* p, F a) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a.v)); }
#else
inline void store_bfloat(uint16_t* p, F a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_or_epi32(rounded, is_nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
}
#endif
inline F load_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline F load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline bool has_nan(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// Lanes first <= i < last keep their value, the others become `other`.
inline F keep_lanes(F a, int first, int last, float other) {
  const __mmask16 mask = __mmask16(((1u << last) - 1) & ~((1u << first) - 1));
  return {_mm512_mask_blend_ps(mask, _mm512_set1_ps(other), a.v)};
}
// Lane i keeps its value if bit i is set, else it becomes `other`.
inline F keep_bits(F a, uint32_t bits, float other) {
  return {_mm512_mask_blend_ps(__mmask16(bits), _mm512_set1_ps(other), a.v)};
}
// a × 2^n for whole n within the float exponent's range.
inline F scale_by_power(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float sum(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float max_lane(F a) {  // not _mm512_reduce_max_ps, which clang compiles as if there were no NaN
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

inline I set1_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
template <int COUNT>
inline I shift_right(I a) {
  return {_mm512_srai_epi32(a.v, COUNT)};
}
inline I load_i(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_i(uint32_t* p, I a) { _mm512_storeu_si512(p, a.v); }
inline I operator^(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
// The low and high halves of sixteen 32 × 32 bit products.
inline void multiply_wide(I a, uint32_t factor, I* low, I* high) {
  const __m512i f = _mm512_set1_epi32(int(factor));
  const __m512i even = _mm512_mul_epu32(a.v, f), odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), f);
  *low = {_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32))};
  *high = {_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd)};
}
inline bool any_at_most(I a, uint32_t limit) {
  return _mm512_cmple_epu32_mask(a.v, _mm512_set1_epi32(int(limit))) != 0;
}
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Sixteen lanes rounded to nearest even and stored as int8; the caller keeps them within ±127. Returns their sum.
inline int32_t store_i8(int8_t* p, F a) {
  const __m512i i = _mm512_cvtps_epi32(a.v);
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(i));
  return _mm512_reduce_add_epi32(i);
}

inline Q load_q(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Q low_nibbles(Q a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Q high_nibbles(Q a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
template <int SHIFT>
inline Q two_bits(Q a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, SHIFT), _mm512_set1_epi8(3))};
}
template <int SHIFT>
inline Q or_shifted(Q a, Q b) {
  return {_mm512_or_si512(a.v, _mm512_slli_epi16(b.v, SHIFT))};
}
// Bit i of the 64 at `bits` adds VALUE to byte i, whose bit of that weight is clear.
template <int VALUE>
inline Q or_bits(Q a, const uint8_t* bits) {
  uint64_t mask;
  std::memcpy(&mask, bits, 8);
  return {_mm512_mask_add_epi8(a.v, mask, a.v, _mm512_set1_epi8(VALUE))};
}
// Byte J of each row's four as float.
template <int J>
inline F byte_of_four(Q a) {
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * J), _mm512_set1_epi32(255)))};
}
// The first and the second of 16 pairs of bf16.
inline F first_bfloats(Q a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
inline F second_bfloats(Q a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(int(0xffff0000u))))};
}
// acc[row] += Σ over 4 weights × the 4 int8 activations at `x`. SIGNED: the bytes hold weight + 128, and the
// caller takes 128 × Σ activations off again.
template <bool SIGNED>
inline I dot4(I acc, Q weights, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return {_mm512_dpbusd_epi32(acc.v, weights.v, _mm512_set1_epi32(four))};
}

}  // namespace
}  // namespace roseinfer

#if !defined(__AVX512BF16__)
#include "simd_pairs.h"
#endif

namespace roseinfer {
namespace {

#if defined(__AVX512BF16__)
// Sixteen pairs of bf16, and acc[i] += pair i × `pair`.
struct P {
  __m512bh v;
};
inline P load_pairs(const uint8_t* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
inline F dot2(F acc, P pairs, uint32_t pair) {
  return {_mm512_dpbf16_ps(acc.v, pairs.v, (__m512bh)_mm512_set1_epi32(int(pair)))};
}
inline P pairs_of_floats(F first, F second) {  // whose low halves are zero
  return {(__m512bh)_mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(first.v), 16),
                                            _mm512_castps_si512(second.v))};
}
#endif
inline P pairs_of_i8(const int8_t* p) {
  const __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
  const F first = {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16))};
  return pairs_of_floats(first, {_mm512_cvtepi32_ps(_mm512_srai_epi32(words, 16))});
}

}  // namespace
}  // namespace roseinfer
