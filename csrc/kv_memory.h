// Where the KV blocks lie.
#pragma once

#include <vector>

#include "pack.h"

namespace roseinfer {

// Memory of its own, or a file in memory that outlives it. Committed when used.
class KvMemory {
 public:
  // The file's bytes from `offset` on, a multiple of LARGE_PAGE, as far as the file is; a negative `fd` is no file.
  KvMemory(int64_t bytes, int fd, int64_t offset);
  uint8_t* data() const { return data_; }
  int64_t size() const { return bytes_; }
  // To be called before [offset, offset + bytes) is written for the first time, and as often as one likes.
  void prepare(int64_t offset, int64_t bytes);

  static constexpr int64_t LARGE_PAGE = 2 << 20;

 private:
  PageBuffer reserved_;
  uint8_t* data_;
  int64_t bytes_;
  std::vector<bool> prepared_;  // each large page of a file; empty without one
};

}  // namespace roseinfer
