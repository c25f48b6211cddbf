#include "thread_pool.h"

#include <chrono>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace roseinfer {
namespace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for `word` to leave `value`: spinning for about 50 µs, which covers the gap between two operations,
// then in the kernel, so that a descheduled partner does not cost a core.
uint32_t wait_for_change(const std::atomic<uint32_t>& word, uint32_t value) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      const uint32_t now = word.load(std::memory_order_acquire);
      if (now != value) return now;
      pause();
    }
    if (std::chrono::steady_clock::now() > deadline) break;
  }
  word.wait(value, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  try {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {  // more threads than the system gives: those that run must be joined
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Claims items until none are left. A claim is a step of `ticket_` from (job, n) to (job, n - 1). It succeeds only
// while that job runs, and a job cannot end while a claimed item is not done, so what was read of it holds.
void ThreadPool::take_items(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (uint32_t(ticket) != 0) {
    const Call call = call_.load(std::memory_order_relaxed);
    const void* context = context_.load(std::memory_order_relaxed);
    const int64_t count = count_.load(std::memory_order_relaxed);
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    run_item(call, context, count - int64_t(uint32_t(ticket)), thread);
    if (num_left_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_left_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::run_item(Call call, const void* context, int64_t item, int thread) {
  if (failed_.load(std::memory_order_relaxed)) return;
  try {
    call(context, item, thread);
  } catch (...) {  // may not leave a worker, nor the caller while workers still use its context
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
}

void ThreadPool::run(int64_t count, Call call, const void* context) {
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  count_.store(count, std::memory_order_relaxed);
  num_left_.store(uint32_t(count), std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(job << 32 | uint64_t(count), std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  take_items(0);
  for (uint32_t left; (left = num_left_.load(std::memory_order_acquire)) != 0;) wait_for_change(num_left_, left);
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    seen = wait_for_change(generation_, seen);
    if (stop_.load()) return;
    take_items(thread);
  }
}

}  // namespace roseinfer
