#include "simd_avx2.h"
// the vectors above, then the kernels over them
#include "kernels.inl"

namespace roseinfer {

const Kernels* avx2_kernels() { return all_formats("avx2"); }

}  // namespace roseinfer
