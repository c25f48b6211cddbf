#include <immintrin.h>

#include "peaks.inl"

namespace roseinfer {
namespace {

typedef uint64_t Register __attribute__((vector_size(64)));
constexpr int COUNT = 16;  // of thirty-two registers

void f32(int64_t rounds) {
  const __m512 half = _mm512_set1_ps(0.5f);
  keep_busy<COUNT>(half, rounds, [&](__m512 acc) { return _mm512_fmadd_ps(acc, half, half); });
}

void int8(int64_t rounds) {
  const __m512i ones = _mm512_set1_epi8(1);
  keep_busy<COUNT>(ones, rounds, [&](__m512i acc) { return _mm512_dpbusd_epi32(acc, ones, ones); });
}

}  // namespace

PeakLoops avx512_peaks() {
  return {read_all<Register>, {{"f32", COUNT * 16 * 2, f32}, {"bf16", 0, nullptr}, {"int8", COUNT * 64 * 2, int8}}};
}

}  // namespace roseinfer
