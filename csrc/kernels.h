// The table of kernels that one instruction set offers. All work on a few rows; program.cpp cuts the work.
#pragma once

#include <cstdint>

#include "layout.h"

namespace roseinfer {

constexpr int MAX_TILE_M = 16;        // activation rows a tile kernel takes at once
constexpr int ATTENTION_SPLIT = 256;  // keys per softmax split, at absolute positions
constexpr int MAX_HEAD_DIM = 256;

enum class KvType : int { F16, BF16, F32 };
enum class ActKind : int { SILU, GELU_TANH, GELU_ERF };

// out[m][16] = the 16 rows of `tile` · x row m, for m < count <= MAX_TILE_M. `x` has `stride` bytes per row.
using TileKernel = void (*)(const uint8_t* tile, int64_t columns, const uint8_t* x, int64_t stride, int count,
                            float* out);

// Queries of one KV head group: `num_tokens` tokens at consecutive positions × `group` heads.
struct AttendTask {
  const float* q;  // [num_tokens][q_stride], the group's first head
  float* out;      // [num_tokens][out_stride], likewise
  int64_t q_stride, out_stride;
  int num_tokens, first_position, group, head_dim;
  float scale;
  int window;  // 0 = all earlier tokens
  KvType type;
  const uint8_t* keys;    // block 0 of this layer and KV head: [head_dim][16]
  const uint8_t* values;  // block 0 likewise: [16][padded head_dim]
  int64_t block_stride;   // bytes from one block to the next
  const int32_t* block_table;
  float* scratch;  // attend_scratch_floats() of them
};

constexpr int padded_head_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int ATTEND_QUERIES = 8;
constexpr int64_t attend_scratch_floats(int head_dim) {
  return ATTEND_QUERIES * (3 * int64_t(padded_head_dim(head_dim)) + ATTENTION_SPLIT + 16);
}

struct Kernels {
  const char* name;
  TileKernel q8_tile[NUM_FORMATS];   // int8 activations; null for the float formats
  TileKernel f32_tile[NUM_FORMATS];  // float32 activations
  TileKernel bf16_tile;              // bf16 weights and activations; null where the CPU has no bf16 dot
  void (*quantize_row)(const float* x, int64_t n, uint8_t* out);
  void (*bf16_row)(const float* x, int64_t n, uint8_t* out);
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* out);
  void (*rope)(float* x, const float* cos, const float* sin, int half);
  // One token's key or value of one head into its slot; `padded` >= head_dim elements, zero-filled.
  void (*store_key)(const float* x, int head_dim, KvType type, uint8_t* block, int slot);
  void (*store_value)(const float* x, int head_dim, KvType type, uint8_t* block, int slot);
  void (*attend)(const AttendTask& task);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*activate)(const float* x, int64_t n, ActKind kind, float* out);
  void (*gated)(const float* gate, const float* up, int64_t n, ActKind kind, float* out);
  // Highest value and whether all are finite or -inf (no NaN, no +inf).
  float (*row_max)(const float* x, int64_t n, bool* is_sound);
  // Σ exp((x - offset) × factor), the lanes in one fixed order.
  float (*sum_exp)(const float* x, int64_t n, float offset, float factor);
};

// Defined by the isa_*.cpp files; null where the build does not have that level.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
TileKernel avx512_bf16_tile();

}  // namespace roseinfer
