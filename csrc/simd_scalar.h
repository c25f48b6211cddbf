// Portable C++: plain loops that any compiler turns into what the machine has (SSE2, NEON).
#pragma once

#include "simd.h"

namespace roseinfer {
namespace {

constexpr int REGISTER_ROWS = 2;  // rows whose accumulators stay in registers: keeps the code small
constexpr bool HAS_SIGNED_DOT = true;
constexpr bool HAS_BF16_DOT = false;

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};
struct Q {
  uint8_t v[64];
};

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
inline float fma1(float a, float b, float c) { return std::fma(a, b, c); }
#else
inline float fma1(float a, float b, float c) { return a * b + c; }  // a library call per product is far too slow
#endif

template <typename Op>
inline F map(Op op) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = op(i);
  return r;
}
inline F zero_f() {
  return map([](int) { return 0.0f; });
}
inline F set1(float x) {
  return map([=](int) { return x; });
}
inline F load(const float* p) {
  return map([=](int i) { return p[i]; });
}
inline void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
inline F load_half(const uint16_t* p) {
  return map([=](int i) { return half_to_float(p[i]); });
}
inline void store_half(uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
}
inline void store_bfloat(uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_bfloat(a.v[i]);
}
inline F load_u8(const uint8_t* p) {
  return map([=](int i) { return float(p[i]); });
}
inline F load_i8(const int8_t* p) {
  return map([=](int i) { return float(p[i]); });
}
inline F operator+(F a, F b) {
  return map([&](int i) { return a.v[i] + b.v[i]; });
}
inline F operator-(F a, F b) {
  return map([&](int i) { return a.v[i] - b.v[i]; });
}
inline F operator*(F a, F b) {
  return map([&](int i) { return a.v[i] * b.v[i]; });
}
inline F operator/(F a, F b) {
  return map([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
  return map([&](int i) { return fma1(a.v[i], b.v[i], c.v[i]); });
}
// As maxps and minps: the second operand where either is NaN.
inline F max(F a, F b) {
  return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F min(F a, F b) {
  return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F abs(F a) {
  return map([&](int i) { return std::fabs(a.v[i]); });
}
inline bool has_nan(F a, F b) {
  bool found = false;
  for (int i = 0; i < 16; ++i) found |= a.v[i] != a.v[i] || b.v[i] != b.v[i];
  return found;
}
inline F round(F a) {
  return map([&](int i) { return std::nearbyint(a.v[i]); });
}
inline F keep_lanes(F a, int first, int last, float other) {
  return map([&](int i) { return i >= first && i < last ? a.v[i] : other; });
}
inline F keep_bits(F a, uint32_t bits, float other) {
  return map([&](int i) { return bits & (1u << i) ? a.v[i] : other; });
}
inline F scale_by_power(F a, F n) {
  return map([&](int i) {
    const int32_t power = n.v[i] == n.v[i] ? int32_t(n.v[i]) : 0;  // NaN has no integer
    return a.v[i] * bits_to_float(uint32_t(power + 127) << 23);
  });
}
inline float sum(F a) {  // the order of the wider instruction sets: halves, then quarters, ...
  for (int width = 8; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}
inline float max_lane(F a) {
  float best = a.v[0];
  for (int i = 1; i < 16; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}

inline I set1_i(int32_t x) {
  I r;
  for (int i = 0; i < 16; ++i) r.v[i] = x;
  return r;
}
template <int COUNT>
inline I shift_right(I a) {
  for (int i = 0; i < 16; ++i) a.v[i] >>= COUNT;
  return a;
}
inline I load_i(const uint32_t* p) {
  I r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void store_i(uint32_t* p, I a) { std::memcpy(p, a.v, sizeof a.v); }
inline I operator^(I a, I b) {
  for (int i = 0; i < 16; ++i) a.v[i] ^= b.v[i];
  return a;
}
inline void multiply_wide(I a, uint32_t factor, I* low, I* high) {
  for (int i = 0; i < 16; ++i) {
    const uint64_t product = uint64_t(uint32_t(a.v[i])) * factor;
    low->v[i] = int32_t(uint32_t(product));
    high->v[i] = int32_t(product >> 32);
  }
}
inline bool any_at_most(I a, uint32_t limit) {
  bool found = false;
  for (int i = 0; i < 16; ++i) found |= uint32_t(a.v[i]) <= limit;
  return found;
}
inline F to_float(I a) {
  return map([&](int i) { return float(a.v[i]); });
}
inline int32_t store_i8(int8_t* p, F a) {
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) {
    const int32_t value = int32_t(std::nearbyint(a.v[i]));
    p[i] = int8_t(value);
    total += value;
  }
  return total;
}

template <typename Op>
inline Q map_q(Op op) {
  Q r;
  for (int i = 0; i < 64; ++i) r.v[i] = uint8_t(op(i));
  return r;
}
inline Q load_q(const uint8_t* p) {
  return map_q([=](int i) { return p[i]; });
}
inline Q low_nibbles(Q a) {
  return map_q([&](int i) { return a.v[i] & 15; });
}
inline Q high_nibbles(Q a) {
  return map_q([&](int i) { return a.v[i] >> 4; });
}
template <int SHIFT>
inline Q two_bits(Q a) {
  return map_q([&](int i) { return (a.v[i] >> SHIFT) & 3; });
}
template <int SHIFT>
inline Q or_shifted(Q a, Q b) {
  return map_q([&](int i) { return a.v[i] | (b.v[i] << SHIFT); });
}
template <int VALUE>
inline Q or_bits(Q a, const uint8_t* bits) {
  return map_q([&](int i) { return a.v[i] | (((bits[i / 8] >> (i % 8)) & 1) * VALUE); });
}
template <int J>
inline F byte_of_four(Q a) {
  return map([&](int i) { return float(a.v[4 * i + J]); });
}
inline uint32_t word_of(const Q& a, int i) {
  uint32_t word;
  std::memcpy(&word, a.v + 4 * i, 4);
  return word;
}
inline F first_bfloats(Q a) {
  return map([&](int i) { return bits_to_float(word_of(a, i) << 16); });
}
inline F second_bfloats(Q a) {
  return map([&](int i) { return bits_to_float(word_of(a, i) & 0xffff0000u); });
}
// acc[row] += Σ over 4 weights × the 4 int8 activations at `x`. SIGNED: the bytes hold weight + 128.
template <bool SIGNED>
inline I dot4(I acc, Q weights, const int8_t* x) {
  for (int row = 0; row < 16; ++row)
    for (int j = 0; j < 4; ++j) acc.v[row] += (int32_t(weights.v[4 * row + j]) - (SIGNED ? 128 : 0)) * x[j];
  return acc;
}

}  // namespace
}  // namespace roseinfer

#include "simd_pairs.h"

namespace roseinfer {
namespace {

inline P pairs_of_i8(const int8_t* p) {
  return pairs_of_floats(map([=](int i) { return float(p[2 * i]); }), map([=](int i) { return float(p[2 * i + 1]); }));
}

}  // namespace
}  // namespace roseinfer
