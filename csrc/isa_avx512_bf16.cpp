// The bf16 dot product: a part of AVX-512 that not every CPU with VNNI has.
#include <immintrin.h>

#include "kernels.h"

namespace roseinfer {
namespace {

// A tile holds pairs of columns: 16 rows × 2 bf16, one register per pair; vdpbf16ps adds both products in order.
template <int M>
inline void bf16_tile_m(const uint8_t* tile, int64_t columns, const uint8_t* x, int64_t stride, float* out) {
  __m512 acc[M];
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  const int64_t pairs = (columns + 1) / 2;
  for (int64_t p = 0; p < pairs; ++p) {
    const __m512bh w = (__m512bh)_mm512_loadu_si512(tile + 64 * p);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const int32_t pair = *((const int32_t*)(x + m * stride) + p);
      acc[m] = _mm512_dpbf16_ps(acc[m], w, (__m512bh)_mm512_set1_epi32(pair));
    }
  }
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(out + 16 * m, acc[m]);
}

void bf16_tile(const uint8_t* tile, int64_t columns, const uint8_t* x, int64_t stride, int count, float* out) {
  int m = 0;
  for (; count - m >= 16; m += 16) bf16_tile_m<16>(tile, columns, x + m * stride, stride, out + 16 * m);
  for (; count - m >= 4; m += 4) bf16_tile_m<4>(tile, columns, x + m * stride, stride, out + 16 * m);
  for (; count - m >= 1; m += 1) bf16_tile_m<1>(tile, columns, x + m * stride, stride, out + 16 * m);
}

}  // namespace

TileKernel avx512_bf16_tile() { return bf16_tile; }

}  // namespace roseinfer
