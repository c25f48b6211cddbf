// What the machine can do at most, with all threads of a pool: the limits that kernels are compared with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thread_pool.h"

namespace nanobind {
class module_;
}

namespace roseinfer {

// One kind of multiply-add over independent accumulators, as fast as an instruction set has it.
struct PeakLoop {
  const char* kind;             // f32, bf16 or int8
  double operations;            // multiplications and additions per round
  void (*run)(int64_t rounds);  // null where the level has no such instruction
};

struct PeakLoops {
  // Reads `bytes`, a multiple of 4 KiB, once.
  void (*read)(const uint8_t* data, int64_t bytes);
  PeakLoop compute[3];
};

// Defined by the peaks_*.cpp files, where the build has the level.
PeakLoops avx2_peaks();
PeakLoops avx512_peaks();
PeakLoop avx512_bf16_peak();

// What measure_peak takes for a level: "read" and the kinds of arithmetic it has.
std::vector<std::string> peak_kinds(const std::string& isa);

// GB/s of a "read" over `bytes` of memory, each thread over its own part, again and again; else GOP/s.
double measure_peak(const std::string& kind, const std::string& isa, ThreadPool& pool, double seconds, int64_t bytes);

void bind_peaks(nanobind::module_& m);

}  // namespace roseinfer
