// From a file's blocks to packed tiles, and back to float rows.
#pragma once

#include <cstdint>
#include <memory>

#include "layout.h"
#include "thread_pool.h"

namespace roseinfer {

// Memory straight from the operating system: zeroed, page-aligned, committed only when touched.
class PageBuffer {
 public:
  explicit PageBuffer(int64_t bytes);
  ~PageBuffer();
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;
  uint8_t* data() const { return data_; }
  int64_t size() const { return bytes_; }

 private:
  uint8_t* data_;
  int64_t bytes_;
};

// A piece of a larger buffer, zeroed: small matrices lie side by side, in few pages, which are large where the system
// has such. The buffer goes with the last of its pieces.
class SharedPages {
 public:
  explicit SharedPages(int64_t bytes);
  uint8_t* data() const { return data_; }
  int64_t size() const { return bytes_; }

 private:
  std::shared_ptr<PageBuffer> buffer_;
  uint8_t* data_;
  int64_t bytes_;
};

struct PackedWeight {
  Format format;
  int64_t rows, columns;
  SharedPages buffer;

  // `source`: rows × columns values in the file's layout, exactly file_bytes() long.
  PackedWeight(Format format, int64_t rows, int64_t columns, const uint8_t* source, ThreadPool& pool);

  int64_t num_tiles() const { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
  int64_t tile_size() const { return tile_bytes(format, columns); }
  const uint8_t* tile(int64_t index) const { return buffer.data() + index * tile_size(); }
  // Row `row` as float32, times nothing: exactly what the format means.
  void unpack_row(int64_t row, float* out) const;
};

int64_t file_bytes(Format format, int64_t rows, int64_t columns);

}  // namespace roseinfer
