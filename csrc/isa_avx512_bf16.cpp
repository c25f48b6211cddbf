#include "simd_avx512.h"
// the vectors above with bf16 dot products, which not every CPU with VNNI has, then the kernels over them
#include "kernels.inl"

namespace roseinfer {

const Kernels* avx512_bf16_kernels() { return all_formats("avx512_bf16"); }

}  // namespace roseinfer
