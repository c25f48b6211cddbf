#include "kv_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <new>

namespace roseinfer {

namespace {

#ifdef __linux__
constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, since Linux 6.1; older headers do not name it
#endif

int64_t large_pages(int64_t bytes) { return (bytes + KvMemory::LARGE_PAGE - 1) / KvMemory::LARGE_PAGE; }

}  // namespace

// The anonymous pages below the file give the system the chance to refuse what it does not have.
KvMemory::KvMemory(int64_t bytes, int fd, int64_t offset)
    : reserved_(fd < 0 ? bytes : (large_pages(bytes) + 1) * LARGE_PAGE), data_(reserved_.data()), bytes_(bytes) {
  if (fd < 0) return;
  prepared_.resize(size_t(large_pages(bytes)));
  data_ += LARGE_PAGE - int64_t(uintptr_t(data_) % uintptr_t(LARGE_PAGE));
  const size_t length = prepared_.size() * size_t(LARGE_PAGE);
  if (mmap(data_, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, off_t(offset)) == MAP_FAILED)
    throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(data_, length, MADV_HUGEPAGE);
#endif
}

// Files in memory have small pages unless an administrator wants it otherwise, which costs every reader of keys and
// values several percent. One that is asked for by hand is had anyway, since Linux 6.1, and sooner than 512 small ones.
void KvMemory::prepare(int64_t offset, int64_t bytes) {
  if (prepared_.empty()) return;
  for (int64_t page = offset / LARGE_PAGE; page * LARGE_PAGE < offset + bytes; ++page) {
    if (prepared_[size_t(page)]) continue;
    prepared_[size_t(page)] = true;
#ifdef __linux__
    volatile uint8_t* start = data_ + page * LARGE_PAGE;
    *start = *start;  // of what has no page at all none is made
    if (madvise((void*)start, size_t(LARGE_PAGE), COLLAPSE) < 0 && errno == EAGAIN) prepared_[size_t(page)] = false;
#endif
  }
}

}  // namespace roseinfer
