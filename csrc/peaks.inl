// The loops behind the measured peaks, compiled once per instruction set by the including file.

#include "peaks.h"

namespace roseinfer {
namespace {

// The value itself, of which the compiler knows nothing any more: it has to be computed, and no two are the same.
template <typename T>
inline T opaque(T value) {
  asm volatile("" : "+m"(value));
  return value;
}

// step() on COUNT accumulators in turn: enough of them to cover the instruction's latency, and no more than fit the
// registers beside its operands.
template <int COUNT, typename T, typename Step>
inline void keep_busy(T start, int64_t rounds, const Step& step) {
  T accumulators[COUNT];
#pragma GCC unroll 16
  for (int j = 0; j < COUNT; ++j) accumulators[j] = opaque(start);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) accumulators[j] = step(accumulators[j]);
  T sum = accumulators[0];
#pragma GCC unroll 16
  for (int j = 1; j < COUNT; ++j) sum += accumulators[j];
  opaque(sum);
}

constexpr int READ_STREAMS = 4;  // read best from memory, compared with 1, 2 and 8
constexpr int READ_LINE = 256;   // bytes of one stream before the next one's turn

// Vector is a whole register: a type of the compiler's vector extension, which has ^.
template <typename Vector>
void read_all(const uint8_t* data, int64_t bytes) {
  constexpr int per_line = READ_LINE / int(sizeof(Vector));
  const int64_t stream_bytes = bytes / READ_STREAMS;
  Vector seen[4] = {};
  for (int64_t at = 0; at < stream_bytes; at += READ_LINE)
#pragma GCC unroll 4
    for (int s = 0; s < READ_STREAMS; ++s)
#pragma GCC unroll 16
      for (int i = 0; i < per_line; ++i) seen[i % 4] ^= ((const Vector*)(data + s * stream_bytes + at))[i];
  opaque(seen[0] ^ seen[1] ^ seen[2] ^ seen[3]);
}

}  // namespace
}  // namespace roseinfer
