#include <immintrin.h>

#include "peaks.inl"

namespace roseinfer {
namespace {

typedef uint64_t Register __attribute__((vector_size(32)));
constexpr int COUNT = 12;  // of sixteen registers

void f32(int64_t rounds) {
  const __m256 half = _mm256_set1_ps(0.5f);
  keep_busy<COUNT>(half, rounds, [&](__m256 acc) { return _mm256_fmadd_ps(acc, half, half); });
}

// The three instructions that make a dot product of four bytes. The accumulator is an operand of the first as well:
// of constants the compiler would take the product out of the loop.
void int8(int64_t rounds) {
  const __m256i ones = _mm256_set1_epi16(1);
  keep_busy<COUNT>(ones, rounds, [&](__m256i acc) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(acc, ones), ones));
  });
}

}  // namespace

PeakLoops avx2_peaks() {
  return {read_all<Register>, {{"f32", COUNT * 8 * 2, f32}, {"bf16", 0, nullptr}, {"int8", COUNT * 32 * 2, int8}}};
}

}  // namespace roseinfer
