// The table of kernels that one instruction set offers. All work on a few rows; program.cpp cuts the work.
#pragma once

#include <cstdint>

#include "layout.h"

namespace roseinfer {

constexpr int ATTENTION_SPLIT = 256;  // keys per softmax split, at absolute positions
constexpr int MAX_HEAD_DIM = 256;

enum class KvType : int { F16, BF16, F32, Q8 };
enum class ActKind : int { SILU, GELU_TANH, GELU_ERF };

// out[m][16] = the 16 rows of `tile` · row m of the panel, for m < count <= PANEL_ROWS; rows of `out` are GROUP floats
// apart. Rows of the panel and of `out` up to the next power of two are read and written as well.
using TileKernel = void (*)(const uint8_t* tile, int64_t columns, const void* panel, int count, float* out);

// What happens to outputs of a linear before they are stored.
struct Epilogue {
  const float* bias;     // [width], padded to whole groups; null = none
  const float* up_bias;  // likewise
  bool has_activation;   // of the output, or of the gate that multiplies `up`
  ActKind activation;
  const float* residual;  // the first row's, null = none
  int64_t residual_stride;
  int width;  // at most 32, or more for a single row
};

// Queries of one KV head: `num_tokens` tokens at consecutive positions × the `group` heads that share it.
struct AttendTask {
  const float* q;  // the first token's first head; tokens lie q_stride apart
  int64_t q_stride;
  float* out;  // [num_tokens][group][head_dim]
  int num_tokens, first_position, group, head_dim;
  float scale;
  int window;  // 0 = all earlier tokens
  KvType type;
  const uint8_t* keys;    // of this layer and KV head in block 0
  const uint8_t* values;  // likewise
  int64_t block_stride;   // bytes from one block to the next
  const int32_t* block_table;
  float* scratch;  // attend_scratch_floats() of them
};

// A KV head's keys in a block: words of one key's next dimensions (one float32, a pair of bf16, four int8) for all 16
// keys, one after the other; float16 has one dimension per half word. Its values: rows of float32 or float16, or
// pairs of keys side by side (bf16, int8). int8 has 16 scales behind.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int64_t kv_element_bytes(KvType type) { return type == KvType::F32 ? 4 : type == KvType::Q8 ? 1 : 2; }
constexpr int64_t kv_part_bytes(KvType type, int head_dim) {  // of a head's keys, and of its values
  return padded_head_dim(head_dim) * KV_BLOCK * kv_element_bytes(type) + (type == KvType::Q8 ? KV_BLOCK * 4 : 0);
}

constexpr int ATTEND_QUERIES = 16;
// A split's result for one query: its weighted values, the scores' maximum and the sum of the weights.
constexpr int64_t partial_floats(int head_dim) { return padded_head_dim(head_dim) + 16; }
constexpr int64_t attend_scratch_floats(int head_dim) {
  return ATTEND_QUERIES * (padded_head_dim(head_dim) + ATTENTION_SPLIT + 2 * partial_floats(head_dim) + 16);
}

// Philox4x32-10's key and first counter for the noise of NOISE_TOKENS tokens, four to a counter.
constexpr int NOISE_TOKENS = 64;
struct NoiseBlock {
  uint32_t key[2], counter[4];
};

struct Kernels {
  const char* name;
  TileKernel q8_tile[NUM_FORMATS];   // int8 activations; null for the float formats
  TileKernel f32_tile[NUM_FORMATS];  // float32 activations
  TileKernel bf16_tile;              // bf16 weights and activations; null where the CPU has no bf16 dot
  // n columns of row m of a panel, from its first group on; int8 wants whole groups.
  void (*to_panel[NUM_ACT_TYPES])(const float* x, int64_t n, void* groups, int m);
  // result[m][32] for m < count, in place; `up` likewise for a gated output, else null.
  void (*finish)(const Epilogue& epilogue, float* result, const float* up, int count);
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* out);
  void (*rope)(float* x, const float* cos, const float* sin, int half);
  // One token's key or value of one head into its slot. Where two keys lie side by side, the value of the last token
  // of a step clears its neighbour: what is multiplied by zero later has to be a number.
  void (*store_key)(const float* x, int head_dim, KvType type, uint8_t* keys, int slot);
  void (*store_value)(const float* x, int head_dim, KvType type, uint8_t* values, int slot, bool is_last);
  void (*attend)(const AttendTask& task);
  // The same in parts: split number `split` of all queries into partials[query][partial_floats], then all splits'
  // partials, [split][query][partial_floats], into `out`. Equal to attend() to the bit.
  void (*attend_split)(const AttendTask& task, int split, float* partials);
  void (*merge_splits)(const AttendTask& task, int num_splits, const float* partials);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*activate)(const float* x, int64_t n, ActKind kind, float* out);
  void (*gated)(const float* gate, const float* up, int64_t n, ActKind kind, float* out);
  // out = x, but -inf where a token's bit is 0: bit i of word w is token 32 w + i.
  void (*keep_allowed)(const float* x, int64_t n, const uint32_t* mask, float* out);
  // Highest value and whether all are finite or -inf (no NaN, no +inf).
  float (*row_max)(const float* x, int64_t n, bool* is_sound);
  // Whether one of x's `count` <= NOISE_TOKENS tokens can reach `score` with its noise; if so, the words of all.
  bool (*noise_reaches)(const float* x, int64_t count, double score, const NoiseBlock& block, uint32_t* words);
  // Σ exp((x - offset) × factor), the lanes in one fixed order.
  float (*sum_exp)(const float* x, int64_t n, float offset, float factor);
};

// Defined by the isa_*.cpp files; null where the build does not have that level.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();

}  // namespace roseinfer
