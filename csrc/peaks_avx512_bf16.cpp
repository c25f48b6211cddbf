// A file of its own, because not every CPU with AVX-512 has this part.
#include <immintrin.h>

#include "peaks.inl"

namespace roseinfer {
namespace {

constexpr int COUNT = 16;  // of thirty-two registers

void bf16(int64_t rounds) {
  const __m512bh halves = (__m512bh)_mm512_set1_epi16(0x3f00);
  keep_busy<COUNT>(_mm512_setzero_ps(), rounds, [&](__m512 acc) { return _mm512_dpbf16_ps(acc, halves, halves); });
}

}  // namespace

PeakLoop avx512_bf16_peak() { return {"bf16", COUNT * 32 * 2, bf16}; }

}  // namespace roseinfer
