#include "simd_avx512.h"
// the vectors above, then the kernels over them
#include "kernels.inl"

namespace roseinfer {

const Kernels* avx512_kernels() { return all_formats("avx512"); }

}  // namespace roseinfer
