#include "pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>

#include "simd.h"

namespace roseinfer {

PageBuffer::PageBuffer(int64_t bytes) : bytes_(bytes > 0 ? bytes : 1) {
  void* p = mmap(nullptr, size_t(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (bytes_ >= (4 << 20)) madvise(p, size_t(bytes_), MADV_HUGEPAGE);
#endif
  data_ = (uint8_t*)p;
}

PageBuffer::~PageBuffer() { munmap(data_, size_t(bytes_)); }

SharedPages::SharedPages(int64_t bytes) : bytes_(bytes) {
  constexpr int64_t BUFFER_BYTES = 32 << 20, ALIGNMENT = 64;
  static std::mutex mutex;
  static std::weak_ptr<PageBuffer> newest;
  static int64_t used;  // of the newest buffer
  const std::lock_guard<std::mutex> lock(mutex);
  buffer_ = newest.lock();
  if (!buffer_ || used + bytes > buffer_->size()) {
    newest = buffer_ = std::make_shared<PageBuffer>(std::max(bytes, BUFFER_BYTES));
    used = 0;
  }
  data_ = buffer_->data() + used;
  used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int64_t file_bytes(Format format, int64_t rows, int64_t columns) {
  const Layout& l = layout_of(format);
  return rows * (columns / l.file_block * l.file_block_bytes);
}

namespace {

// One row's share of a group: 32 stored values (unsigned), and its scales as they go into the packed group.
struct GroupValues {
  uint8_t q[GROUP];
  uint8_t scale[2], minimum[2];
};

uint32_t load_word(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

void store_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, 4); }

// The lowest bits of a word's four bytes, as its lowest four bits: the product has them at 28 .. 31.
uint8_t gather_bits(uint32_t word) { return uint8_t((word & 0x01010101) * 0x10204080u >> 28); }

// The inverse: the lowest bit of each byte, from a word's lowest four bits.
uint32_t spread_bits(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101; }

void nibbles_16_apart(const uint8_t* packed, uint8_t* q) {
  for (int j = 0; j < 16; ++j) {
    q[j] = packed[j] & 15;
    q[j + 16] = packed[j] >> 4;
  }
}

void add_fifth_bits(const uint8_t* high, uint8_t* q) {
  const uint32_t bits = load_word(high);
  for (int z = 0; z < 8; ++z) store_word(q + 4 * z, load_word(q + 4 * z) | spread_bits(bits >> (4 * z)) << 4);
}

// The 6-bit scale and minimum j of a q4_k or q5_k block's twelve bytes.
void six_bit_pair(const uint8_t* s, int j, uint8_t* scale, uint8_t* minimum) {
  if (j < 4) {
    *scale = s[j] & 63;
    *minimum = s[j + 4] & 63;
  } else {
    *scale = uint8_t((s[j + 4] & 15) | (s[j - 4] >> 6 << 4));
    *minimum = uint8_t((s[j + 4] >> 4) | (s[j] >> 6 << 4));
  }
}

void read_q2_k(const uint8_t* block, int g, GroupValues& out) {
  const uint8_t* scales = block;
  const uint8_t* q = block + 16 + 32 * (g / 4);
  for (int j = 0; j < GROUP; ++j) out.q[j] = q[j] >> (2 * (g % 4)) & 3;
  for (int h = 0; h < 2; ++h) out.scale[h] = scales[2 * g + h];  // scale and minimum share the byte
}

void read_q3_k(const uint8_t* block, int g, GroupValues& out) {
  const uint8_t* high = block;
  const uint8_t* q = block + 32 + 32 * (g / 4);
  const uint8_t* s = block + 96;
  for (int j = 0; j < GROUP; ++j) out.q[j] = uint8_t((q[j] >> (2 * (g % 4)) & 3) | (high[j] >> g & 1) << 2);
  for (int h = 0; h < 2; ++h) {
    const int i = 2 * g + h;
    const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
    out.scale[h] = uint8_t((low | (s[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32);
  }
}

void read_q4_k(const uint8_t* block, int g, GroupValues& out) {
  six_bit_pair(block + 4, g, out.scale, out.minimum);
  const uint8_t* q = block + 16 + 32 * (g / 2);
  for (int j = 0; j < GROUP; ++j) out.q[j] = q[j] >> (4 * (g % 2)) & 15;
}

void read_q5_k(const uint8_t* block, int g, GroupValues& out) {
  six_bit_pair(block + 4, g, out.scale, out.minimum);
  const uint8_t* high = block + 16;
  const uint8_t* q = block + 48 + 32 * (g / 2);
  for (int j = 0; j < GROUP; ++j) out.q[j] = uint8_t((q[j] >> (4 * (g % 2)) & 15) | (high[j] >> g & 1) << 4);
}

void read_q6_k(const uint8_t* block, int g, GroupValues& out) {
  const int half = g / 4, quarter = g % 4;
  const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
  const uint8_t* high = block + 128 + 32 * half;
  for (int j = 0; j < GROUP; ++j)
    out.q[j] = uint8_t((low[j] >> (4 * (quarter / 2)) & 15) | (high[j] >> (2 * quarter) & 3) << 4);
  for (int h = 0; h < 2; ++h) out.scale[h] = block[192 + 2 * g + h];
}

// Where a block keeps its float16 d (and dmin or m behind or beside it).
int d_offset(Format f) {
  switch (f) {
    case Format::Q2_K: return 80;
    case Format::Q3_K: return 108;
    case Format::Q6_K: return 208;
    default: return 0;
  }
}

// Group `g` of the block (always 0 for the 32-value formats).
void read_group(Format format, const uint8_t* block, int g, GroupValues& out) {
  switch (format) {
    case Format::Q4_0: return nibbles_16_apart(block + 2, out.q);
    case Format::Q4_1: return nibbles_16_apart(block + 4, out.q);
    case Format::Q5_0: nibbles_16_apart(block + 6, out.q); return add_fifth_bits(block + 2, out.q);
    case Format::Q5_1: nibbles_16_apart(block + 8, out.q); return add_fifth_bits(block + 4, out.q);
    case Format::Q8_0:
      for (int j = 0; j < GROUP; ++j) out.q[j] = block[2 + j] ^ 0x80;
      return;
    case Format::Q2_K: return read_q2_k(block, g, out);
    case Format::Q3_K: return read_q3_k(block, g, out);
    case Format::Q4_K: return read_q4_k(block, g, out);
    case Format::Q5_K: return read_q5_k(block, g, out);
    case Format::Q6_K: return read_q6_k(block, g, out);
    default: return;
  }
}

// Row `r`'s values into the planes of a packed group, four columns at a time. The group was zeroed.
template <Format F>
void write_values(const uint8_t* q, int r, uint8_t* group) {
  constexpr Layout l = layout_of(F);
  if (l.bytes >= 0)
    for (int z = 0; z < 8; ++z) store_word(group + l.bytes + 64 * z + 4 * r, load_word(q + 4 * z));
  if (l.nibbles >= 0)
    for (int z = 0; z < 4; ++z) {
      const uint32_t low = load_word(q + 4 * z) & 0x0f0f0f0f, high = load_word(q + 4 * z + 16) & 0x0f0f0f0f;
      store_word(group + l.nibbles + 64 * z + 4 * r, low | high << 4);
    }
  const int low_bits = l.nibbles >= 0 ? 4 : 0;
  if (l.crumbs >= 0)
    for (int z = 0; z < 2; ++z) {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) word |= (load_word(q + 16 * z + 4 * i) >> low_bits & 0x03030303) << (2 * i);
      store_word(group + l.crumbs + 64 * z + 4 * r, word);
    }
  const int bit = l.nibbles >= 0 ? 4 : 2;
  if (l.bits >= 0)
    for (int z = 0; z < 8; ++z)
      group[l.bits + 8 * z + r / 2] |= uint8_t(gather_bits(load_word(q + 4 * z) >> bit) << (4 * (r % 2)));
}

uint8_t read_value(const Layout& l, const uint8_t* group, int r, int k) {
  const int z = k / 4, j = k % 4;
  if (l.bytes >= 0) return group[l.bytes + 64 * z + 4 * r + j];
  int value = 0;
  if (l.nibbles >= 0) value = group[l.nibbles + 64 * (z % 4) + 4 * r + j] >> (4 * (z / 4)) & 15;
  if (l.crumbs >= 0)
    value |= (group[l.crumbs + 64 * (z / 4) + 4 * r + j] >> (2 * (z % 4)) & 3) << (l.nibbles >= 0 ? 4 : 0);
  if (l.bits >= 0) value |= (group[l.bits + 8 * z + r / 2] >> (4 * (r % 2) + j) & 1) << (l.nibbles >= 0 ? 4 : 2);
  return uint8_t(value);
}

template <Format F>
void write_scales(const uint8_t* block, const GroupValues& values, int r, uint8_t* group) {
  constexpr Layout l = layout_of(F);
  if (!l.k_quant) {
    std::memcpy(group + l.scales + 2 * r, block, 2);
    if (l.has_min) std::memcpy(group + l.mins + 2 * r, block + 2, 2);
    return;
  }
  for (int h = 0; h < (l.halves ? 2 : 1); ++h) {
    group[l.scales + 16 * h + r] = values.scale[h];
    if (l.has_min && F != Format::Q2_K) group[l.mins + 16 * h + r] = values.minimum[h];
  }
}

// Row `r`'s block into a tile's groups.
template <Format F>
void pack_block(const uint8_t* block, int r, uint8_t* target) {
  constexpr Layout l = layout_of(F);
  if (l.k_quant) {
    std::memcpy(target + 2 * r, block + d_offset(F), 2);
    if (l.has_min) std::memcpy(target + 32 + 2 * r, block + d_offset(F) + 2, 2);
    target += l.header_bytes;
  }
  for (int g = 0; g < l.groups_per_super; ++g, target += l.group_bytes) {
    GroupValues values;
    read_group(F, block, g, values);
    write_values<F>(values.q, r, target);
    write_scales<F>(block, values, r, target);
  }
}

template <Format F>
void pack_quantised(const uint8_t* source, int64_t row_bytes, int num_rows, int64_t columns, uint8_t* tile) {
  constexpr Layout l = layout_of(F);
  for (int64_t b = 0; b < columns / l.file_block; ++b) {
    for (int r = 0; r < num_rows; ++r) pack_block<F>(source + r * row_bytes + b * l.file_block_bytes, r, tile);
    tile += l.header_bytes + l.groups_per_super * l.group_bytes;
  }
}

// Words of 16 rows side by side, a cache line of each row at a time.
template <typename Word>
void interleave(const uint8_t* source, int64_t row_bytes, int num_rows, int64_t num_words, uint8_t* tile) {
  constexpr int64_t LINE = 64 / sizeof(Word), SIZE = sizeof(Word);
  for (int64_t begin = 0; begin < num_words; begin += LINE)
    for (int r = 0; r < num_rows; ++r)
      for (int64_t k = begin; k < std::min(begin + LINE, num_words); ++k)
        std::memcpy(tile + (k * TILE_ROWS + r) * SIZE, source + r * row_bytes + k * SIZE, SIZE);
}

// Pairs of columns side by side.
void pack_bf16(const uint8_t* source, int64_t row_bytes, int num_rows, int64_t columns, uint8_t* tile) {
  interleave<uint32_t>(source, row_bytes, num_rows, columns / 2, tile);
  if (columns % 2 == 0) return;
  uint8_t* last = tile + columns / 2 * TILE_ROWS * 4;
  for (int r = 0; r < num_rows; ++r) std::memcpy(last + 4 * r, source + r * row_bytes + (columns - 1) * 2, 2);
}

using PackTile = void (*)(const uint8_t* source, int64_t row_bytes, int num_rows, int64_t columns, uint8_t* tile);

constexpr PackTile PACK_TILE[NUM_FORMATS] = {
    interleave<uint32_t>,         interleave<uint16_t>,         pack_bf16,
    pack_quantised<Format::Q4_0>, pack_quantised<Format::Q4_1>, pack_quantised<Format::Q5_0>,
    pack_quantised<Format::Q5_1>, pack_quantised<Format::Q8_0>, pack_quantised<Format::Q2_K>,
    pack_quantised<Format::Q3_K>, pack_quantised<Format::Q4_K>, pack_quantised<Format::Q5_K>,
    pack_quantised<Format::Q6_K>,
};

float load_half(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return half_to_float(h);
}

// scale and minimum of columns 16h .. 16h + 15 of a packed group.
void read_scales(const Layout& l, Format format, const uint8_t* header, const uint8_t* group, int r, int h,
                 float* scale, float* minimum) {
  *minimum = 0.0f;
  if (!l.k_quant) {
    *scale = load_half(group + l.scales + 2 * r);
    if (l.has_min) *minimum = load_half(group + l.mins + 2 * r);
    return;
  }
  const uint8_t s = group[l.scales + 16 * (l.halves ? h : 0) + r];
  const float d = load_half(header + 2 * r);
  if (format == Format::Q2_K) {
    *scale = d * float(s & 15);
    *minimum = -load_half(header + 32 + 2 * r) * float(s >> 4);
  } else if (l.has_min) {
    *scale = d * float(s);
    *minimum = -load_half(header + 32 + 2 * r) * float(group[l.mins + r]);
  } else {
    *scale = d * float(int8_t(s));
  }
}

void unpack_quantised_row(Format format, const uint8_t* tile, int64_t columns, int r, float* out) {
  const Layout& l = layout_of(format);
  const uint8_t *header = tile, *group = tile + l.header_bytes;
  float scale = 0.0f, minimum = 0.0f;
  for (int64_t g = 0; g < columns / GROUP; ++g) {
    for (int k = 0; k < GROUP; ++k) {
      if (k % 16 == 0) read_scales(l, format, header, group, r, k / 16, &scale, &minimum);
      const float value = scale * float(int(read_value(l, group, r, k)) - l.zero);
      out[g * GROUP + k] = l.has_min ? value + minimum : value;
    }
    group += l.group_bytes;
    if (l.k_quant && g % l.groups_per_super == l.groups_per_super - 1) {
      header = group;
      group += l.header_bytes;
    }
  }
}

}  // namespace

PackedWeight::PackedWeight(Format format_, int64_t rows_, int64_t columns_, const uint8_t* source, ThreadPool& pool)
    : format(format_),
      rows(rows_),
      columns(columns_),
      buffer((rows_ + TILE_ROWS - 1) / TILE_ROWS * tile_bytes(format_, columns_)) {
  const int64_t row_bytes = file_bytes(format, 1, columns);
  pool.parallel(num_tiles(), [&](int64_t t, int) {
    const int num_rows = int(std::min<int64_t>(TILE_ROWS, rows - t * TILE_ROWS));
    const uint8_t* first = source + t * TILE_ROWS * row_bytes;
    PACK_TILE[int(format)](first, row_bytes, num_rows, columns, buffer.data() + t * tile_size());
  });
}

void PackedWeight::unpack_row(int64_t row, float* out) const {
  const uint8_t* source = tile(row / TILE_ROWS);
  const int r = int(row % TILE_ROWS);
  switch (format) {
    case Format::F32:
      for (int64_t k = 0; k < columns; ++k) std::memcpy(out + k, source + (k * TILE_ROWS + r) * 4, 4);
      return;
    case Format::F16:
      for (int64_t k = 0; k < columns; ++k) out[k] = load_half(source + (k * TILE_ROWS + r) * 2);
      return;
    case Format::BF16:
      for (int64_t k = 0; k < columns; ++k) {
        uint16_t b;
        std::memcpy(&b, source + ((k / 2 * TILE_ROWS + r) * 2 + k % 2) * 2, 2);
        out[k] = bfloat_to_float(b);
      }
      return;
    default: unpack_quantised_row(format, source, columns, r, out);
  }
}

}  // namespace roseinfer
