#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "cpu.h"
#include "pack.h"
#include "peaks.inl"

namespace nb = nanobind;

namespace roseinfer {
namespace {

constexpr int64_t READ_PART = 4096;          // what a thread's part of a read is a multiple of
constexpr int64_t READ_BYTES = 64 << 20;     // at least, per thread and pass: much longer than a barrier
constexpr int64_t COMPUTE_ROUNDS = 1 << 18;  // per thread and pass: about a millisecond
constexpr int64_t MEMORY_BYTES = 512 << 20;  // sixteen times an L3 of 32 MiB

// The baseline of every 64-bit CPU: registers of 16 bytes, no fused multiply-add.
typedef uint64_t Register __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));
constexpr int COUNT = 14;  // of sixteen registers

void f32(int64_t rounds) {
  const Floats half = {0.5f, 0.5f, 0.5f, 0.5f};
  keep_busy<COUNT>(half, rounds, [&](Floats acc) { return acc * half + half; });
}

PeakLoops scalar_peaks() {
  return {read_all<Register>, {{"f32", COUNT * 4 * 2, f32}, {"bf16", 0, nullptr}, {"int8", 0, nullptr}}};
}

PeakLoops loops_of(const std::string& isa) {
  const Kernels* kernels = select_kernels(isa);
  if (!kernels) throw std::invalid_argument("instruction set " + isa + " is not available here");
#if defined(ROSEINFER_X86)
  const std::string level = kernels->name;
  if (level == "avx2") return avx2_peaks();
  if (level == "avx512") return avx512_peaks();
  if (level == "avx512_bf16") {
    PeakLoops loops = avx512_peaks();
    loops.compute[1] = avx512_bf16_peak();
    return loops;
  }
#endif
  return scalar_peaks();
}

// Giga-units of work per second while every thread does `work` in every pass. The first pass is not counted.
template <typename Pass>
double rate(ThreadPool& pool, double work, double seconds, const Pass& pass) {
  using Clock = std::chrono::steady_clock;
  pool.parallel(pool.size(), pass);
  const Clock::time_point start = Clock::now();
  double done = 0, elapsed = 0;
  do {
    pool.parallel(pool.size(), pass);
    done += work * pool.size();
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  } while (elapsed < seconds);
  return done / elapsed / 1e9;
}

double read_rate(const PeakLoops& loops, ThreadPool& pool, double seconds, int64_t bytes) {
  const int64_t part = bytes / pool.size() / READ_PART * READ_PART;
  if (part < READ_PART) throw std::invalid_argument("a read takes at least 4096 bytes per thread");
  PageBuffer memory(part * pool.size());
  std::memset(memory.data(), 1, size_t(memory.size()));  // pages that were never written are all the same one
  const int64_t repeat = (READ_BYTES + part - 1) / part;
  return rate(pool, double(part) * double(repeat), seconds, [&](int64_t, int thread) {
    for (int64_t i = 0; i < repeat; ++i) loops.read(memory.data() + thread * part, part);
  });
}

}  // namespace

std::vector<std::string> peak_kinds(const std::string& isa) {
  const PeakLoops loops = loops_of(isa);
  std::vector<std::string> kinds{"read"};
  for (const PeakLoop& loop : loops.compute)
    if (loop.run) kinds.push_back(loop.kind);
  return kinds;
}

double measure_peak(const std::string& kind, const std::string& isa, ThreadPool& pool, double seconds, int64_t bytes) {
  const PeakLoops loops = loops_of(isa);
  if (kind == "read") return read_rate(loops, pool, seconds, bytes);
  for (const PeakLoop& loop : loops.compute)
    if (kind == loop.kind && loop.run)
      return rate(pool, loop.operations * COMPUTE_ROUNDS, seconds, [&](int64_t, int) { loop.run(COMPUTE_ROUNDS); });
  throw std::invalid_argument(isa + " has no peak of kind " + kind);
}

void bind_peaks(nb::module_& m) {
  m.def("peak_kinds", peak_kinds, nb::arg("isa"));
  m.def(
      "measure_peak",
      [](const std::string& kind, const std::string& isa, std::shared_ptr<ThreadPool> pool, double seconds,
         int64_t bytes) {
        nb::gil_scoped_release release;
        return measure_peak(kind, isa, *pool, seconds, bytes);
      },
      nb::arg("kind"), nb::arg("isa"), nb::arg("pool"), nb::arg("seconds"), nb::arg("bytes") = MEMORY_BYTES);
}

}  // namespace roseinfer
