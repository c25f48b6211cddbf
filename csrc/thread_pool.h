// Threads that spin briefly between the operations of a step and sleep between steps.
//
// Each thread has a contiguous share of a job's items, which it takes from the front, so that it reads memory in one
// stream; who is done takes from the others' backs. A job is done when its items are done, not when every thread has
// come by: a worker that is asleep, or that the operating system has put aside, is not waited for unless it holds an
// item.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace roseinfer {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return int(workers_.size()) + 1; }

  // From now on `counter` grows with every item that the caller's thread has done: what a watchdog in another process
  // looks at. Only that thread may write it.
  void count_progress(uint64_t* counter) { progress_ = counter; }

  // Calls body(item, thread) for every item < count, in any order on any thread; returns when all are done.
  // One item, or one thread, runs on the caller without a barrier. If a body throws, items that nobody has begun are
  // left out, and one of the exceptions comes out here.
  template <typename Body>
  void parallel(int64_t count, const Body& body) {
    if (count <= 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; ++i) {
        body(i, 0);
        progress();
      }
      return;
    }
    const Call call = [](const void* context, int64_t item, int thread) { (*(const Body*)context)(item, thread); };
    for (int64_t first = 0; first < count; first += MAX_ITEMS)
      run(first, count - first < MAX_ITEMS ? count - first : MAX_ITEMS, call, &body);
  }

 private:
  static constexpr int64_t MAX_ITEMS = 0xffff;  // of one job
  using Call = void (*)(const void* context, int64_t item, int thread);

  // A thread's own items that nobody has claimed: job number << 32 | first << 16 | end.
  struct alignas(64) Range {
    std::atomic<uint64_t> ticket{0};
  };

  void run(int64_t first, int64_t count, Call call, const void* context);
  void work(int thread);
  void take_items(int thread);
  bool take_item(int owner, int thread);
  void run_item(Call call, const void* context, int64_t item, int thread);
  void stop();
  void progress() {
    if (progress_) __atomic_store_n(progress_, *progress_ + 1, __ATOMIC_RELAXED);
  }

  uint64_t* progress_ = nullptr;
  std::vector<std::thread> workers_;
  std::vector<Range> ranges_;  // one per thread, the caller's first
  // The job. Read by workers that may be late; what they read counts only if they claim an item of it.
  std::atomic<Call> call_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int64_t> first_{0};
  uint64_t job_ = 0;
  alignas(64) std::atomic<uint32_t> num_left_{0};    // items that are not done
  alignas(64) std::atomic<uint32_t> generation_{0};  // what idle workers watch
  std::atomic<bool> stop_{false}, failed_{false};
  std::exception_ptr error_;  // of the body that set failed_
};

}  // namespace roseinfer
