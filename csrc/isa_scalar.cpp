#include "simd_scalar.h"
// the vectors above, then the kernels over them
#include "kernels.inl"

namespace roseinfer {

const Kernels* scalar_kernels() { return all_formats("scalar"); }

}  // namespace roseinfer
