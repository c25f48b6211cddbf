// What this CPU and its operating system offer, and the kernels chosen for it.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace roseinfer {

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C and BMI2
  bool avx512 = false;       // AVX-512 F, BW, DQ, VL and VNNI
  bool avx512_bf16 = false;  // and BF16
};

CpuFeatures cpu_features();
// Names of the levels that run here, lowest first.
std::vector<std::string> available_isas();
// The kernels of a level ("auto" = the highest); null where it does not run here.
const Kernels* select_kernels(const std::string& isa);

}  // namespace roseinfer
