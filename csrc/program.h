// A compiled model: a flat list of operations over preallocated buffers, run without a single allocation.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "kv_memory.h"
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

// Where an activation lies: a byte offset into the arena, rows of `width` floats, or panels of that many columns.
struct Buffer {
  int64_t offset = -1;
  int64_t width = 0;
  bool exists() const { return offset >= 0; }
};

// The forms in which an operation leaves its result: floats for those who compute with them, panels for linears.
struct Output {
  Buffer floats;
  Buffer panels[NUM_ACT_TYPES];
};

struct Program;

struct Op {
  virtual ~Op() = default;
  virtual void run(Program& p) const = 0;
  virtual std::string name() const = 0;
};

// What running an operation took, while that is measured.
struct OpTime {
  int64_t calls = 0;
  double seconds = 0.0;
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
  PageBuffer arena;
  KvMemory kv;
  std::vector<std::unique_ptr<Op>> ops;
  std::vector<RopeTable> ropes;
  Buffer logits;
  bool is_profiled = false;
  std::vector<OpTime> times;  // of each op, where is_profiled

  // The step that runs, and what is derived from it once.
  Step step;
  std::vector<int32_t> token_rows;
  std::vector<AttendItem> attend_items;
  std::vector<std::vector<float>> scratch;  // one per thread
  std::vector<float> partials;              // of attention that is cut along the keys

  Program(const Kernels* kernels, std::shared_ptr<ThreadPool> pool, int max_tokens, int max_logits, int num_blocks,
          int64_t block_bytes, KvType kv_type, int64_t arena_bytes, int kv_fd = -1, int64_t kv_offset = 0);

  void forward(const Step& step);
  // Adds the cos/sin table of a spec and gives its index.
  int add_rope(std::vector<double> inv_freq, float scale);

  float* floats(Buffer b) const { return (float*)(arena.data() + b.offset); }
  uint8_t* bytes(Buffer b) const { return arena.data() + b.offset; }
  int count(Rows rows) const { return rows == Rows::TOKENS ? step.num_tokens : step.num_logits; }
  // `values`, columns first_column .. + width - 1 of row `row`, in all forms of `out`.
  void write(const Output& out, const float* values, int64_t row, int64_t first_column, int64_t width) const;

 private:
  void run_profiled();
};

struct EmbeddingOp : Op {
  std::shared_ptr<PackedWeight> weight;
  Buffer out;
  float scale;
  bool by_position;
  void run(Program& p) const override;
  std::string name() const override { return "embedding"; }
};

// rms_norm (per head) or layer_norm.
struct NormOp : Op {
  Buffer x;
  Output out;
  std::vector<float> weight, bias;  // bias: layer_norm
  float eps;
  int num_heads;
  Rows rows;
  void run(Program& p) const override;
  std::string name() const override { return bias.empty() ? "rms_norm" : "layer_norm"; }
};

// Floats → panels, behind an operation that does not write them itself.
struct PrepareOp : Op {
  Buffer x;
  Output out;
  Rows rows;
  void run(Program& p) const override;
  std::string name() const override { return "prepare"; }
};

struct LinearSegment {
  std::shared_ptr<PackedWeight> weight;
  std::vector<float> bias;  // empty, or padded to whole groups
  Output out;
};

struct GroupRange {
  int64_t first, end;  // groups of 32 outputs
};

enum class Combine : int { NONE, ACTIVATE, GATED };

// out = x · weightᵀ (+ bias) for every segment, then the activation and the residual. GATED has two segments,
// gate and up, and writes activation(gate) × up to the first one's output.
struct LinearOp : Op {
  Buffer x;
  ActType type;
  Rows rows;
  std::vector<LinearSegment> segments;
  Combine combine;
  ActKind act;
  Buffer residual;
  void run(Program& p) const override;
  std::string name() const override;

 private:
  void run_groups(Program& p, const LinearSegment& segment, GroupRange groups, int first_row, int count) const;
  void compute(const Program& p, const PackedWeight& weight, GroupRange groups, int panel, int count, float* out) const;
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
  std::string name() const override { return "store_kv"; }
};

struct AttentionOp : Op {
  Buffer q;
  Output out;
  int num_heads;
  KvLayer layer;
  float scale;
  int window;
  void run(Program& p) const override;
  std::string name() const override { return "attention"; }

 private:
  AttendTask task_of(const Program& p, int64_t index, float* scratch, float* result) const;
  void write(const Program& p, int64_t index, const float* result) const;
  void run_in_splits(Program& p, int64_t num_tasks, int num_splits) const;
};

struct AddOp : Op {
  Buffer a, b, out;
  Rows rows;
  void run(Program& p) const override;
  std::string name() const override { return "add"; }
};

struct ActivateOp : Op {
  Buffer x, out;
  ActKind act;
  Rows rows;
  void run(Program& p) const override;
  std::string name() const override { return "activate"; }
};

struct GatedOp : Op {
  Buffer gate, up, out;
  ActKind act;
  Rows rows;
  void run(Program& p) const override;
  std::string name() const override { return "gated"; }
};

struct RopeOp : Op {  // where rope is not followed by attention's store
  Buffer x, out;
  int rope, num_heads;
  void run(Program& p) const override;
  std::string name() const override { return "rope"; }
};

struct TakeRowsOp : Op {
  Buffer x, out;
  void run(Program& p) const override;
  std::string name() const override { return "take_rows"; }
};

}  // namespace roseinfer
