// A compiled model: a flat list of operations over preallocated buffers, run without a single allocation.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "pack.h"
#include "thread_pool.h"

namespace roseinfer {

// What one step works on; see ForwardInputs in roseinfer/core/batch.py.
struct Step {
  int num_tokens = 0, num_rows = 0, num_logits = 0, table_width = 0;
  const int32_t *token_ids, *positions, *row_offsets, *block_tables, *logit_rows;
};

// Up to ATTEND_TOKENS consecutive tokens of one row.
struct AttendItem {
  int row, first_token, num_tokens;
};
constexpr int ATTEND_TOKENS = 32;

enum class Rows : int { TOKENS, LOGITS };
enum class ActType : int { F32, Q8, BF16 };  // what a linear reads

// Where an activation lies: a byte offset into the arena, rows of `width` floats (or their prepared form).
struct Buffer {
  int64_t offset = -1;
  int64_t width = 0;
  bool exists() const { return offset >= 0; }
};

struct Program;

struct Op {
  virtual ~Op() = default;
  virtual void run(Program& p) const = 0;
};

// cos and sin of one RopeSpec at the step's positions, [tokens][half] each.
struct RopeTable {
  std::vector<double> inv_freq;
  float scale;
  std::vector<float> cos, sin;
};

struct Program {
  const Kernels* kernels;
  std::shared_ptr<ThreadPool> pool;
  int max_tokens, max_logits, num_blocks;
  int64_t block_bytes;  // all layers' keys and values of one block
  KvType kv_type;
  PageBuffer arena, kv;
  std::vector<std::unique_ptr<Op>> ops;
  std::vector<RopeTable> ropes;
  Buffer logits;

  // The step that runs, and what is derived from it once.
  Step step;
  std::vector<int32_t> token_rows;
  std::vector<AttendItem> attend_items;
  std::vector<std::vector<float>> scratch;  // one per thread

  Program(const Kernels* kernels, std::shared_ptr<ThreadPool> pool, int max_tokens, int max_logits, int num_blocks,
          int64_t block_bytes, KvType kv_type, int64_t arena_bytes);

  void forward(const Step& step);
  // Adds the cos/sin table of a spec and gives its index.
  int add_rope(std::vector<double> inv_freq, float scale);

  float* floats(Buffer b) const { return (float*)(arena.data() + b.offset); }
  uint8_t* bytes(Buffer b) const { return arena.data() + b.offset; }
  int count(Rows rows) const { return rows == Rows::TOKENS ? step.num_tokens : step.num_logits; }
};

struct EmbeddingOp : Op {
  std::shared_ptr<PackedWeight> weight;
  Buffer out;
  float scale;
  bool by_position;
  void run(Program& p) const override;
};

// rms_norm (per head) or layer_norm; the result as floats and/or prepared for linears.
struct NormOp : Op {
  Buffer x, out, q8, bf16;
  std::vector<float> weight, bias;  // bias: layer_norm
  float eps;
  int num_heads;
  Rows rows;
  void run(Program& p) const override;
};

// Floats → what linears of other activation types read.
struct PrepareOp : Op {
  Buffer x, q8, bf16;
  Rows rows;
  void run(Program& p) const override;
};

struct LinearSegment {
  std::shared_ptr<PackedWeight> weight;
  std::vector<float> bias;  // empty, or padded to whole tiles
  Buffer out;
};

enum class Epilogue : int { NONE, ACTIVATE, GATED };

// out = x · weightᵀ (+ bias) for every segment, then the epilogue and the residual. GATED has two segments,
// gate and up, and writes activation(gate) × up to the first one's buffer.
struct LinearOp : Op {
  Buffer x, residual;
  ActType type;
  Rows rows;
  std::vector<LinearSegment> segments;
  Epilogue epilogue;
  ActKind act;
  void run(Program& p) const override;

 private:
  void run_tile(Program& p, const LinearSegment& segment, int64_t tile, int first_row, int count) const;
  void compute(Program& p, const LinearSegment& segment, int64_t tile, int first_row, int count, float* out) const;
};

struct KvLayer {
  int64_t offset;  // in a block
  int num_kv_heads, head_dim;
};

// Head norms and rope of q and k, then k and v into the cache.
struct StoreKvOp : Op {
  Buffer q, k, v;
  int num_heads;
  KvLayer layer;
  std::vector<float> q_norm, k_norm;  // empty = none
  float eps;
  int rope;  // index of a RopeTable, -1 = none
  void run(Program& p) const override;
};

struct AttentionOp : Op {
  Buffer q, out;
  int num_heads;
  KvLayer layer;
  float scale;
  int window;
  void run(Program& p) const override;
};

struct AddOp : Op {
  Buffer a, b, out;
  Rows rows;
  void run(Program& p) const override;
};

struct ActivateOp : Op {
  Buffer x, out;
  ActKind act;
  Rows rows;
  void run(Program& p) const override;
};

struct GatedOp : Op {
  Buffer gate, up, out;
  ActKind act;
  Rows rows;
  void run(Program& p) const override;
};

struct RopeOp : Op {  // where rope is not followed by attention's store
  Buffer x, out;
  int rope, num_heads;
  void run(Program& p) const override;
};

struct TakeRowsOp : Op {
  Buffer x, out;
  void run(Program& p) const override;
};

}  // namespace roseinfer
