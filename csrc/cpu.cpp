#include "cpu.h"

#if defined(ROSEINFER_X86)
#include <cpuid.h>
#endif

namespace roseinfer {

#if defined(ROSEINFER_X86)
namespace {

// The register state the operating system saves on a context switch (XCR0): a CPU that has AVX-512 under a
// kernel that does not save it must not be asked for it.
uint64_t saved_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

bool has(uint32_t word, int bit) { return word >> bit & 1; }

}  // namespace

CpuFeatures cpu_features() {
  CpuFeatures features;
  uint32_t a, b, c, d, b7, c7, d7;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 27)) return features;  // 27: OSXSAVE
  const bool fma = has(c, 12), avx = has(c, 28), f16c = has(c, 29);
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return features;
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  features.avx2 = ymm && avx && fma && f16c && has(b7, 5) && has(b7, 8);
  features.avx512 = features.avx2 && zmm && has(b7, 16) && has(b7, 17) && has(b7, 30) && has(b7, 31) && has(c7, 11);
  uint32_t a71 = 0;
  if (a >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d)) features.avx512_bf16 = features.avx512 && has(a71, 5);
  return features;
}

const Kernels* select_kernels(const std::string& isa) {
  const CpuFeatures features = cpu_features();
  if (features.avx512_bf16 && (isa == "auto" || isa == "avx512_bf16")) return avx512_bf16_kernels();
  if (features.avx512 && (isa == "auto" || isa == "avx512")) return avx512_kernels();
  if (features.avx2 && (isa == "auto" || isa == "avx2")) return avx2_kernels();
  return isa == "auto" || isa == "scalar" ? scalar_kernels() : nullptr;
}

#else

CpuFeatures cpu_features() { return {}; }

const Kernels* select_kernels(const std::string& isa) {
  return isa == "auto" || isa == "scalar" ? scalar_kernels() : nullptr;
}

#endif

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16"})
    if (select_kernels(name)) names.push_back(name);
  return names;
}

}  // namespace roseinfer
