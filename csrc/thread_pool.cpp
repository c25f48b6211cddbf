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

ThreadPool::ThreadPool(int num_threads) : ranges_(size_t(num_threads > 1 ? num_threads : 1)) {
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

// Runs one unclaimed item of `owner`'s, if there is any: of its own a thread takes the first, of others the last. What
// was read of the job holds if the claim succeeds: it does so only while that job runs, and a job cannot end while a
// claimed item is not done.
bool ThreadPool::take_item(int owner, int thread) {
  std::atomic<uint64_t>& range = ranges_[size_t(owner)].ticket;
  uint64_t ticket = range.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t first = ticket >> 16 & 0xffff, end = ticket & 0xffff;
    if (first >= end) return false;
    const Call call = call_.load(std::memory_order_relaxed);
    const void* context = context_.load(std::memory_order_relaxed);
    const int64_t offset = first_.load(std::memory_order_relaxed);
    const uint64_t rest = owner == thread ? ticket + (1 << 16) : ticket - 1;
    if (!range.compare_exchange_weak(ticket, rest, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    run_item(call, context, offset + int64_t(owner == thread ? first : end - 1), thread);
    return true;
  }
}

void ThreadPool::take_items(int thread) {
  const int num_threads = int(ranges_.size());
  uint32_t num_done = 0;  // told once: the counter is everybody's
  for (int i = 0; i < num_threads; ++i)
    while (take_item((thread + i) % num_threads, thread)) {
      ++num_done;
      if (thread == 0) progress();
    }
  if (num_done > 0 && num_left_.fetch_sub(num_done, std::memory_order_acq_rel) == num_done) num_left_.notify_one();
}

void ThreadPool::run_item(Call call, const void* context, int64_t item, int thread) {
  if (failed_.load(std::memory_order_relaxed)) return;
  try {
    call(context, item, thread);
  } catch (...) {  // may not leave a worker, nor the caller while workers still use its context
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
}

void ThreadPool::run(int64_t first, int64_t count, Call call, const void* context) {
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  first_.store(first, std::memory_order_relaxed);
  num_left_.store(uint32_t(count), std::memory_order_relaxed);
  ++job_;
  const int64_t num_threads = int64_t(ranges_.size());
  for (int64_t t = 0; t < num_threads; ++t) {
    const uint64_t begin = uint64_t(count * t / num_threads), end = uint64_t(count * (t + 1) / num_threads);
    ranges_[size_t(t)].ticket.store(job_ << 32 | begin << 16 | end, std::memory_order_release);
  }
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
