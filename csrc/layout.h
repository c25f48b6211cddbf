// How weights lie in memory once packed, and the activations they meet.
//
// A weight matrix [rows, columns] is cut into tiles of 16 rows. A tile runs along the columns in groups of 32:
// one group holds its 16 × 32 values as up to three planes, then the scales of its 16 rows. A "quad" is 64 bytes:
// 16 rows × 4 consecutive columns, what one vpdpbusd eats; a group has 8 quads.
//
//   nibbles  256 B   plane z = quad z in the low and quad z + 4 in the high four bits
//   crumbs   128 B   plane z = quads 4z .. 4z + 3 at bits 0, 2, 4, 6
//   bits      64 B   8 bytes per quad, one bit per value
//   bytes    512 B   one quad after another
//
// K-quants put a header with the 16 rows' float16 d (and dmin) before every eighth group. Values stay what the
// file says: value = scale × (stored - ZERO) + minimum, with the scale and minimum the format defines.
#pragma once

#include <cstdint>

namespace roseinfer {

constexpr int TILE_ROWS = 16;
constexpr int GROUP = 32;     // columns per group
constexpr int KV_BLOCK = 16;  // tokens per KV block: the lanes of a register

enum class Format : int { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K };
constexpr int NUM_FORMATS = 13;

constexpr bool is_float(Format f) { return f <= Format::BF16; }

struct Layout {
  const char* name;
  int file_block;        // values per block in the file
  int file_block_bytes;  // bytes per block in the file
  int groups_per_super;  // 1, or 8 where a header precedes eight groups
  int header_bytes;
  int group_bytes;  // of the quantised formats
  int zero;         // subtracted from every stored value
  bool has_min;
  bool halves;  // a scale for every 16 columns instead of every 32
  bool k_quant;
  // offsets in a group, -1 = absent
  int nibbles, crumbs, bits, bytes, scales, mins;
};

constexpr Layout LAYOUTS[NUM_FORMATS] = {
    {"f32", 1, 4, 1, 0, 0, 0, false, false, false, -1, -1, -1, -1, -1, -1},
    {"f16", 1, 2, 1, 0, 0, 0, false, false, false, -1, -1, -1, -1, -1, -1},
    {"bf16", 1, 2, 1, 0, 0, 0, false, false, false, -1, -1, -1, -1, -1, -1},
    {"q4_0", 32, 18, 1, 0, 288, 8, false, false, false, 0, -1, -1, -1, 256, -1},
    {"q4_1", 32, 20, 1, 0, 320, 0, true, false, false, 0, -1, -1, -1, 256, 288},
    {"q5_0", 32, 22, 1, 0, 352, 16, false, false, false, 0, -1, 256, -1, 320, -1},
    {"q5_1", 32, 24, 1, 0, 384, 0, true, false, false, 0, -1, 256, -1, 320, 352},
    {"q8_0", 32, 34, 1, 0, 544, 128, false, false, false, -1, -1, -1, 0, 512, -1},
    // A q2_k scale shares its byte with the minimum: low and high four bits.
    {"q2_k", 256, 84, 8, 64, 160, 0, true, true, true, -1, 0, -1, -1, 128, 128},
    {"q3_k", 256, 110, 8, 32, 224, 4, false, true, true, -1, 0, 128, -1, 192, -1},
    {"q4_k", 256, 144, 8, 64, 288, 0, true, false, true, 0, -1, -1, -1, 256, 272},
    {"q5_k", 256, 176, 8, 64, 352, 0, true, false, true, 0, -1, 256, -1, 320, 336},
    {"q6_k", 256, 210, 8, 32, 416, 32, false, true, true, 0, 256, -1, -1, 384, -1},
};

constexpr const Layout& layout_of(Format f) { return LAYOUTS[int(f)]; }

// Bytes of one packed tile of 16 rows × `columns`.
constexpr int64_t tile_bytes(Format f, int64_t columns) {
  const Layout& l = layout_of(f);
  if (f == Format::BF16) return (columns + 1) / 2 * 2 * TILE_ROWS * 2;  // pairs of columns side by side
  if (is_float(f)) return columns * TILE_ROWS * l.file_block_bytes;
  const int64_t groups = columns / GROUP;
  return groups * l.group_bytes + groups / l.groups_per_super * l.header_bytes;
}

// Activations that linears read, prepared once for all of them: panels of 16 rows, cut along the columns in groups of
// 32 like the weights, so that a kernel walks both from front to back. Columns behind the last one are zero.
constexpr int PANEL_ROWS = 16;

enum class ActType : int { F32, Q8, BF16 };
constexpr int NUM_ACT_TYPES = 3;

struct F32Group {
  float values[PANEL_ROWS][GROUP];
};

struct BF16Group {
  uint16_t values[PANEL_ROWS][GROUP];
};

// int8 with a scale per row, and the sums of the int8 values that zero points and minimums need, over all 32 columns
// and over each half: as scale × sum, and as -128 × sum, which a shift turns into -zero × sum for every zero point.
struct Q8Group {
  int8_t values[PANEL_ROWS][GROUP];
  float scales[PANEL_ROWS];
  float scaled_sums[PANEL_ROWS];
  int32_t offsets[PANEL_ROWS];
  float half_scaled_sums[2][PANEL_ROWS];
  int32_t half_offsets[2][PANEL_ROWS];
};

constexpr int64_t num_groups(int64_t columns) { return (columns + GROUP - 1) / GROUP; }

constexpr int64_t group_bytes(ActType type) {
  switch (type) {
    case ActType::F32: return sizeof(F32Group);
    case ActType::Q8: return sizeof(Q8Group);
    default: return sizeof(BF16Group);
  }
}

constexpr int64_t panel_bytes(ActType type, int64_t columns) { return num_groups(columns) * group_bytes(type); }

// Bytes of all panels of `rows` rows.
constexpr int64_t panels_bytes(ActType type, int64_t rows, int64_t columns) {
  return (rows + PANEL_ROWS - 1) / PANEL_ROWS * panel_bytes(type, columns);
}

}  // namespace roseinfer
