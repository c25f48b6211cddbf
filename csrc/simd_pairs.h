// Pairs of bf16 for the levels without bf16 dot products: two float32 multiply-adds for each. Included by their
// headers, behind the vectors.
#pragma once

namespace roseinfer {
namespace {

struct P {
  F first, second;
};
inline P load_pairs(const uint8_t* p) {
  const Q q = load_q(p);
  return {first_bfloats(q), second_bfloats(q)};
}
inline F dot2(F acc, P pairs, uint32_t pair) {
  const F first = set1(bits_to_float(pair << 16)), second = set1(bits_to_float(pair & 0xffff0000u));
  return fma(pairs.second, second, fma(pairs.first, first, acc));
}
inline P pairs_of_floats(F first, F second) { return {first, second}; }

}  // namespace
}  // namespace roseinfer
