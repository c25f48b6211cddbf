#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace roseinfer {
namespace {

constexpr int ROWS_PER_ITEM = 8;  // of a row-wise operation: enough work to be worth another thread
constexpr int LINEAR_ROWS = 64;   // activation rows that stay in L2 while a thread's tiles pass

// Runs body(row, thread) over all rows, a few per item.
template <typename Body>
void for_rows(Program& p, int count, const Body& body) {
  p.pool->parallel((count + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, [&](int64_t item, int thread) {
    const int last = std::min<int>(count, int(item + 1) * ROWS_PER_ITEM);
    for (int row = int(item) * ROWS_PER_ITEM; row < last; ++row) body(row, thread);
  });
}

void prepare_row(Program& p, const float* x, int64_t width, int row, Buffer q8, Buffer bf16) {
  if (q8.exists()) p.kernels->quantize_row(x, width, p.bytes(q8) + row * q8_row_bytes(width));
  if (bf16.exists()) p.kernels->bf16_row(x, width, p.bytes(bf16) + row * bf16_row_bytes(width));
}

int64_t act_row_bytes(ActType type, int64_t width) {
  switch (type) {
    case ActType::F32: return width * 4;
    case ActType::Q8: return q8_row_bytes(width);
    default: return bf16_row_bytes(width);
  }
}

int64_t kv_element_bytes(KvType type) { return type == KvType::F32 ? 4 : 2; }

// Bytes of one KV head's keys (or values, which are padded) in a block.
int64_t key_bytes(const Program& p, const KvLayer& l) {
  return int64_t(l.head_dim) * KV_BLOCK * kv_element_bytes(p.kv_type);
}

int64_t value_bytes(const Program& p, const KvLayer& l) {
  return int64_t(padded_head_dim(l.head_dim)) * KV_BLOCK * kv_element_bytes(p.kv_type);
}

uint8_t* head_keys(const Program& p, const KvLayer& l, int64_t block, int head) {
  return p.kv.data() + block * p.block_bytes + l.offset + head * (key_bytes(p, l) + value_bytes(p, l));
}

}  // namespace

Program::Program(const Kernels* kernels_, std::shared_ptr<ThreadPool> pool_, int max_tokens_, int max_logits_,
                 int num_blocks_, int64_t block_bytes_, KvType kv_type_, int64_t arena_bytes)
    : kernels(kernels_),
      pool(std::move(pool_)),
      max_tokens(max_tokens_),
      max_logits(max_logits_),
      num_blocks(num_blocks_),
      block_bytes(block_bytes_),
      kv_type(kv_type_),
      arena(arena_bytes),
      kv(num_blocks_ * block_bytes_),
      token_rows(size_t(max_tokens_)),
      scratch(size_t(pool->size()), std::vector<float>(size_t(attend_scratch_floats(MAX_HEAD_DIM)))) {
  attend_items.reserve(size_t(max_tokens_));
}

int Program::add_rope(std::vector<double> inv_freq, float scale) {
  const size_t floats = inv_freq.size() * size_t(max_tokens);
  ropes.push_back({std::move(inv_freq), scale, std::vector<float>(floats), std::vector<float>(floats)});
  return int(ropes.size()) - 1;
}

void Program::forward(const Step& new_step) {
  step = new_step;
  attend_items.clear();
  for (int row = 0; row < step.num_rows; ++row) {
    const int first = step.row_offsets[row], last = step.row_offsets[row + 1];
    std::fill(token_rows.begin() + first, token_rows.begin() + last, row);
    for (int t = first; t < last; t += ATTEND_TOKENS)
      attend_items.push_back({row, t, std::min(ATTEND_TOKENS, last - t)});
  }
  for (RopeTable& table : ropes) {
    const size_t half = table.inv_freq.size();
    for_rows(*this, step.num_tokens, [&](int t, int) {
      for (size_t i = 0; i < half; ++i) {
        const double angle = step.positions[t] * table.inv_freq[i];
        table.cos[t * half + i] = float(std::cos(angle)) * table.scale;
        table.sin[t * half + i] = float(std::sin(angle)) * table.scale;
      }
    });
  }
  for (const std::unique_ptr<Op>& op : ops) op->run(*this);
}

void EmbeddingOp::run(Program& p) const {
  for_rows(p, p.step.num_tokens, [&](int t, int) {
    float* row = p.floats(out) + t * out.width;
    weight->unpack_row(by_position ? p.step.positions[t] : p.step.token_ids[t], row);
    if (scale != 1.0f)
      for (int64_t i = 0; i < out.width; ++i) row[i] *= scale;
  });
}

void NormOp::run(Program& p) const {
  const int64_t part = x.width / num_heads;
  for_rows(p, p.count(rows), [&](int row, int thread) {
    const float* source = p.floats(x) + row * x.width;
    float* target = out.exists() ? p.floats(out) + row * x.width : p.scratch[size_t(thread)].data();
    for (int h = 0; h < num_heads; ++h) {
      const float* from = source + h * part;
      float* to = target + h * part;
      if (bias.empty()) p.kernels->rms_norm(from, weight.data(), part, eps, to);
      else p.kernels->layer_norm(from, weight.data(), bias.data(), part, eps, to);
    }
    prepare_row(p, target, x.width, row, q8, bf16);
  });
}

void PrepareOp::run(Program& p) const {
  for_rows(p, p.count(rows),
           [&](int row, int) { prepare_row(p, p.floats(x) + row * x.width, x.width, row, q8, bf16); });
}

void LinearOp::compute(Program& p, const LinearSegment& segment, int64_t tile, int first_row, int count,
                       float* out) const {
  const PackedWeight& w = *segment.weight;
  const int64_t stride = act_row_bytes(type, x.width);
  const uint8_t* source = p.bytes(x) + first_row * stride;
  switch (type) {
    case ActType::F32: p.kernels->f32_tile[int(w.format)](w.tile(tile), w.columns, source, stride, count, out); break;
    case ActType::Q8: p.kernels->q8_tile[int(w.format)](w.tile(tile), w.columns, source, stride, count, out); break;
    case ActType::BF16: p.kernels->bf16_tile(w.tile(tile), w.columns, source, stride, count, out); break;
  }
  if (segment.bias.empty()) return;
  const float* bias = segment.bias.data() + tile * TILE_ROWS;
  for (int m = 0; m < count; ++m)
    for (int i = 0; i < TILE_ROWS; ++i) out[m * TILE_ROWS + i] += bias[i];
}

void LinearOp::run_tile(Program& p, const LinearSegment& segment, int64_t tile, int first_row, int count) const {
  alignas(64) float result[MAX_TILE_M * TILE_ROWS], second[MAX_TILE_M * TILE_ROWS];
  compute(p, segment, tile, first_row, count, result);
  if (epilogue == Epilogue::ACTIVATE) p.kernels->activate(result, count * TILE_ROWS, act, result);
  if (epilogue == Epilogue::GATED) {
    compute(p, segments[1], tile, first_row, count, second);
    p.kernels->gated(result, second, count * TILE_ROWS, act, result);
  }
  const int64_t column = tile * TILE_ROWS;
  const int64_t width = std::min<int64_t>(TILE_ROWS, segment.weight->rows - column);
  for (int m = 0; m < count; ++m) {
    float* target = p.floats(segment.out) + (first_row + m) * segment.out.width + column;
    if (residual.exists()) {
      const float* add = p.floats(residual) + (first_row + m) * residual.width + column;
      for (int64_t i = 0; i < width; ++i) target[i] = add[i] + result[m * TILE_ROWS + i];
    } else {
      std::memcpy(target, result + m * TILE_ROWS, size_t(width) * 4);
    }
  }
}

void LinearOp::run(Program& p) const {
  const int num_rows = p.count(rows);
  if (num_rows == 0) return;
  const size_t num_segments = epilogue == Epilogue::GATED ? 1 : segments.size();
  int64_t num_tiles = 0;
  for (size_t s = 0; s < num_segments; ++s) num_tiles += segments[s].weight->num_tiles();
  const int64_t per_item = std::clamp<int64_t>(num_tiles / (8 * p.pool->size()), 1, 16);
  const int64_t tile_items = (num_tiles + per_item - 1) / per_item;
  const int64_t row_items = (num_rows + LINEAR_ROWS - 1) / LINEAR_ROWS;
  p.pool->parallel(tile_items * row_items, [&](int64_t item, int) {
    const int first = int(item / tile_items) * LINEAR_ROWS, last = std::min(num_rows, first + LINEAR_ROWS);
    int64_t tile = item % tile_items * per_item;
    const int64_t end = std::min(num_tiles, tile + per_item);
    size_t s = 0;
    int64_t before = 0;  // tiles of the segments in front
    for (; tile < end; ++tile) {
      while (tile - before >= segments[s].weight->num_tiles()) before += segments[s++].weight->num_tiles();
      for (int row = first; row < last; row += MAX_TILE_M)
        run_tile(p, segments[s], tile - before, row, std::min(MAX_TILE_M, last - row));
    }
  });
}

void StoreKvOp::run(Program& p) const {
  const int head_dim = layer.head_dim;
  auto turn = [&](float* heads, int count, const std::vector<float>& norm, int token) {
    for (int h = 0; h < count; ++h) {
      float* x = heads + h * head_dim;
      if (!norm.empty()) p.kernels->rms_norm(x, norm.data(), head_dim, eps, x);
      if (rope < 0) continue;
      const RopeTable& table = p.ropes[size_t(rope)];
      const int64_t half = int64_t(table.inv_freq.size());
      p.kernels->rope(x, table.cos.data() + token * half, table.sin.data() + token * half, int(half));
    }
  };
  for_rows(p, p.step.num_tokens, [&](int t, int) {
    float* key = p.floats(k) + t * k.width;
    const float* value = p.floats(v) + t * v.width;
    turn(p.floats(q) + t * q.width, num_heads, q_norm, t);
    turn(key, layer.num_kv_heads, k_norm, t);
    const int position = p.step.positions[t], slot = position % KV_BLOCK;
    const int64_t block =
        p.step.block_tables[int64_t(p.token_rows[size_t(t)]) * p.step.table_width + position / KV_BLOCK];
    for (int h = 0; h < layer.num_kv_heads; ++h) {
      uint8_t* keys = head_keys(p, layer, block, h);
      p.kernels->store_key(key + h * head_dim, head_dim, p.kv_type, keys, slot);
      p.kernels->store_value(value + h * head_dim, head_dim, p.kv_type, keys + key_bytes(p, layer), slot);
    }
  });
}

void AttentionOp::run(Program& p) const {
  const int group = num_heads / layer.num_kv_heads;
  const int64_t count = int64_t(p.attend_items.size()) * layer.num_kv_heads;
  p.pool->parallel(count, [&](int64_t i, int thread) {
    const AttendItem& item = p.attend_items[size_t(i / layer.num_kv_heads)];
    const int head = int(i % layer.num_kv_heads);
    AttendTask task;
    const int64_t first = int64_t(head) * group * layer.head_dim;
    task.q = p.floats(q) + item.first_token * q.width + first;
    task.out = p.floats(out) + item.first_token * out.width + first;
    task.q_stride = q.width;
    task.out_stride = out.width;
    task.num_tokens = item.num_tokens;
    task.first_position = p.step.positions[item.first_token];
    task.group = group;
    task.head_dim = layer.head_dim;
    task.scale = scale;
    task.window = window;
    task.type = p.kv_type;
    task.keys = head_keys(p, layer, 0, head);
    task.values = task.keys + key_bytes(p, layer);
    task.block_stride = p.block_bytes;
    task.block_table = p.step.block_tables + int64_t(item.row) * p.step.table_width;
    task.scratch = p.scratch[size_t(thread)].data();
    p.kernels->attend(task);
  });
}

void AddOp::run(Program& p) const {
  for_rows(p, p.count(rows), [&](int row, int) {
    p.kernels->add(p.floats(a) + row * a.width, p.floats(b) + row * b.width, a.width, p.floats(out) + row * a.width);
  });
}

void ActivateOp::run(Program& p) const {
  for_rows(p, p.count(rows), [&](int row, int) {
    p.kernels->activate(p.floats(x) + row * x.width, x.width, act, p.floats(out) + row * x.width);
  });
}

void GatedOp::run(Program& p) const {
  for_rows(p, p.count(rows), [&](int row, int) {
    const int64_t at = row * gate.width;
    p.kernels->gated(p.floats(gate) + at, p.floats(up) + at, gate.width, act, p.floats(out) + at);
  });
}

void RopeOp::run(Program& p) const {
  const RopeTable& table = p.ropes[size_t(rope)];
  const int64_t half = int64_t(table.inv_freq.size()), head_dim = x.width / num_heads;
  for_rows(p, p.step.num_tokens, [&](int t, int) {
    float* target = p.floats(out) + t * x.width;
    std::memmove(target, p.floats(x) + t * x.width, size_t(x.width) * 4);
    for (int h = 0; h < num_heads; ++h)
      p.kernels->rope(target + h * head_dim, table.cos.data() + t * half, table.sin.data() + t * half, int(half));
  });
}

void TakeRowsOp::run(Program& p) const {
  for (int i = 0; i < p.step.num_logits; ++i)
    std::memcpy(p.floats(out) + i * x.width, p.floats(x) + p.step.logit_rows[i] * x.width, size_t(x.width) * 4);
}

}  // namespace roseinfer
