#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace roseinfer {
namespace {

constexpr int ROWS_PER_ITEM = 8;     // of a row-wise operation: enough work to be worth another thread
constexpr int LINEAR_ROWS = 64;      // activation rows that stay in L2 while a thread's tiles pass
constexpr int TASKS_PER_THREAD = 4;  // fewer of them are cut along the keys, so that no thread waits long

// Runs body(row, thread) over all rows, a few per item.
template <typename Body>
void for_rows(Program& p, int count, const Body& body) {
  p.pool->parallel((count + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, [&](int64_t item, int thread) {
    const int last = std::min<int>(count, int(item + 1) * ROWS_PER_ITEM);
    for (int row = int(item) * ROWS_PER_ITEM; row < last; ++row) body(row, thread);
  });
}

// 32 floats of each row on their way into the cache, while the tiles are computed.
template <bool FOR_WRITING>
void prefetch_rows(const float* first, int64_t stride, int count) {
  for (int m = 0; m < count; ++m) {
    __builtin_prefetch(first + m * stride, FOR_WRITING);
    __builtin_prefetch(first + m * stride + GROUP / 2, FOR_WRITING);
  }
}

// The block that token `t` of the step is stored in.
int64_t block_of(const Program& p, int t) {
  const int64_t row = p.token_rows[size_t(t)];
  return p.step.block_tables[row * p.step.table_width + p.step.positions[t] / KV_BLOCK];
}

uint8_t* head_keys(const Program& p, const KvLayer& l, int64_t block, int head) {
  return p.kv.data() + block * p.block_bytes + l.offset + head * 2 * kv_part_bytes(p.kv_type, l.head_dim);
}

}  // namespace

Program::Program(const Kernels* kernels_, std::shared_ptr<ThreadPool> pool_, int max_tokens_, int max_logits_,
                 int num_blocks_, int64_t block_bytes_, KvType kv_type_, int64_t arena_bytes, int kv_fd,
                 int64_t kv_offset)
    : kernels(kernels_),
      pool(std::move(pool_)),
      max_tokens(max_tokens_),
      max_logits(max_logits_),
      num_blocks(num_blocks_),
      block_bytes(block_bytes_),
      kv_type(kv_type_),
      arena(arena_bytes),
      kv(num_blocks_ * block_bytes_, kv_fd, kv_offset),
      token_rows(size_t(max_tokens_)),
      scratch(size_t(pool->size())) {
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
    for (int t = first; t < last; ++t)
      if (t == first || step.positions[t] % KV_BLOCK == 0) kv.prepare(block_of(*this, t) * block_bytes, block_bytes);
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
  if (is_profiled) return run_profiled();
  for (const std::unique_ptr<Op>& op : ops) op->run(*this);
}

void Program::run_profiled() {
  using Clock = std::chrono::steady_clock;
  times.resize(ops.size());
  for (size_t i = 0; i < ops.size(); ++i) {
    const auto start = Clock::now();
    ops[i]->run(*this);
    times[i].seconds += std::chrono::duration<double>(Clock::now() - start).count();
    ++times[i].calls;
  }
}

void Program::write(const Output& out, const float* values, int64_t row, int64_t first_column, int64_t width) const {
  if (out.floats.exists())
    std::memcpy(floats(out.floats) + row * out.floats.width + first_column, values, size_t(width) * 4);
  for (int type = 0; type < NUM_ACT_TYPES; ++type) {
    const Buffer& b = out.panels[type];
    if (!b.exists()) continue;
    uint8_t* panel = bytes(b) + row / PANEL_ROWS * panel_bytes(ActType(type), b.width);
    kernels->to_panel[type](values, width, panel + first_column / GROUP * group_bytes(ActType(type)),
                            int(row % PANEL_ROWS));
  }
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
    float* target = p.scratch[size_t(thread)].data();
    for (int h = 0; h < num_heads; ++h) {
      const float* from = source + h * part;
      float* to = target + h * part;
      if (bias.empty()) p.kernels->rms_norm(from, weight.data(), part, eps, to);
      else p.kernels->layer_norm(from, weight.data(), bias.data(), part, eps, to);
    }
    p.write(out, target, row, 0, x.width);
  });
}

void PrepareOp::run(Program& p) const {
  for_rows(p, p.count(rows), [&](int row, int) { p.write(out, p.floats(x) + row * x.width, row, 0, x.width); });
}

std::string LinearOp::name() const {
  int64_t num_rows = 0;
  for (const LinearSegment& segment : segments) num_rows += segment.weight->rows;
  const PackedWeight& first = *segments.front().weight;
  return std::string("linear ") + layout_of(first.format).name + " " + std::to_string(num_rows) + "x" +
         std::to_string(first.columns);
}

// The tiles of `count` groups of 32 outputs, for the rows of one panel: one group for several rows, or several for one.
void LinearOp::compute(const Program& p, const PackedWeight& w, GroupRange groups, int panel, int count,
                       float* out) const {
  const uint8_t* rows = p.bytes(x) + panel * panel_bytes(type, x.width);
  const TileKernel kernel = type == ActType::F32  ? p.kernels->f32_tile[int(w.format)]
                            : type == ActType::Q8 ? p.kernels->q8_tile[int(w.format)]
                                                  : p.kernels->bf16_tile;
  const int64_t first = 2 * groups.first, end = std::min(2 * groups.end, w.num_tiles());
  for (int64_t tile = first; tile < end; ++tile)
    kernel(w.tile(tile), w.columns, rows, count, out + (tile - first) * TILE_ROWS);
}

void LinearOp::run_groups(Program& p, const LinearSegment& segment, GroupRange groups, int first_row, int count) const {
  alignas(64) float result[PANEL_ROWS * GROUP], up[PANEL_ROWS * GROUP];
  const int64_t column = groups.first * GROUP;
  const int width = int(std::min(groups.end * GROUP, segment.weight->rows) - column);
  const auto bias_of = [&](const LinearSegment& s) { return s.bias.empty() ? nullptr : s.bias.data() + column; };
  Epilogue epilogue{bias_of(segment), nullptr, combine != Combine::NONE, act, nullptr, residual.width, width};
  if (residual.exists()) {
    epilogue.residual = p.floats(residual) + first_row * residual.width + column;
    prefetch_rows<false>(epilogue.residual, residual.width, count);
  }
  if (segment.out.floats.exists())
    prefetch_rows<true>(p.floats(segment.out.floats) + first_row * segment.out.floats.width + column,
                        segment.out.floats.width, count);
  compute(p, *segment.weight, groups, first_row / PANEL_ROWS, count, result);
  if (combine == Combine::GATED) {
    compute(p, *segments[1].weight, groups, first_row / PANEL_ROWS, count, up);
    epilogue.up_bias = bias_of(segments[1]);
  }
  p.kernels->finish(epilogue, result, combine == Combine::GATED ? up : nullptr, count);
  for (int m = 0; m < count; ++m) p.write(segment.out, result + m * GROUP, first_row + m, column, width);
}

void LinearOp::run(Program& p) const {
  const int count = p.count(rows);
  if (count == 0) return;
  const size_t num_outputs = combine == Combine::GATED ? 1 : segments.size();
  int64_t total = 0;  // groups of 32 outputs
  for (size_t s = 0; s < num_outputs; ++s) total += num_groups(segments[s].weight->rows);
  // One row takes several groups at once where there are many: less to do beside reading.
  const int64_t at_once = count == 1 ? std::clamp<int64_t>(total / (16 * p.pool->size()), 1, PANEL_ROWS) : 1;
  const int64_t group_items = (total + at_once - 1) / at_once;
  const int64_t row_items = (count + LINEAR_ROWS - 1) / LINEAR_ROWS;
  p.pool->parallel(group_items * row_items, [&](int64_t item, int) {
    const int first_row = int(item / group_items) * LINEAR_ROWS, last_row = std::min(count, first_row + LINEAR_ROWS);
    const int64_t first = item % group_items * at_once, end = std::min(total, first + at_once);
    int64_t before = 0;  // groups of the segments in front
    for (size_t s = 0; s < num_outputs; before += num_groups(segments[s++].weight->rows)) {
      const GroupRange here{std::max<int64_t>(first - before, 0),
                            std::min(end - before, num_groups(segments[s].weight->rows))};
      if (here.first >= here.end) continue;
      for (int row = first_row; row < last_row; row += PANEL_ROWS)
        run_groups(p, segments[s], here, row, std::min(PANEL_ROWS, last_row - row));
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
    const int64_t block = block_of(p, t);
    const int row = p.token_rows[size_t(t)];
    const bool is_last = t + 1 == p.step.row_offsets[row + 1];
    for (int h = 0; h < layer.num_kv_heads; ++h) {
      uint8_t* keys = head_keys(p, layer, block, h);
      p.kernels->store_key(key + h * head_dim, head_dim, p.kv_type, keys, slot);
      p.kernels->store_value(value + h * head_dim, head_dim, p.kv_type, keys + kv_part_bytes(p.kv_type, head_dim), slot,
                             is_last);
    }
  });
}

// Task `index`: one KV head of one AttendItem.
AttendTask AttentionOp::task_of(const Program& p, int64_t index, float* scratch, float* result) const {
  const AttendItem& item = p.attend_items[size_t(index / layer.num_kv_heads)];
  const int head = int(index % layer.num_kv_heads), group = num_heads / layer.num_kv_heads;
  AttendTask task;
  task.q = p.floats(q) + item.first_token * q.width + int64_t(head) * group * layer.head_dim;
  task.q_stride = q.width;
  task.out = result;
  task.num_tokens = item.num_tokens;
  task.first_position = p.step.positions[item.first_token];
  task.group = group;
  task.head_dim = layer.head_dim;
  task.scale = scale;
  task.window = window;
  task.type = p.kv_type;
  task.keys = head_keys(p, layer, 0, head);
  task.values = task.keys + kv_part_bytes(p.kv_type, layer.head_dim);
  task.block_stride = p.block_bytes;
  task.block_table = p.step.block_tables + int64_t(item.row) * p.step.table_width;
  task.scratch = scratch;
  return task;
}

void AttentionOp::write(const Program& p, int64_t index, const float* result) const {
  const AttendItem& item = p.attend_items[size_t(index / layer.num_kv_heads)];
  const int64_t width = int64_t(num_heads / layer.num_kv_heads) * layer.head_dim;
  for (int t = 0; t < item.num_tokens; ++t)
    p.write(out, result + t * width, item.first_token + t, index % layer.num_kv_heads * width, width);
}

void AttentionOp::run(Program& p) const {
  const int64_t num_tasks = int64_t(p.attend_items.size()) * layer.num_kv_heads;
  int last_position = 0;
  for (const AttendItem& item : p.attend_items)
    last_position = std::max(last_position, p.step.positions[item.first_token]);
  const int num_splits = last_position / ATTENTION_SPLIT + 1;
  if (p.step.num_tokens == p.step.num_rows && num_splits > 1 && num_tasks < TASKS_PER_THREAD * p.pool->size())
    return run_in_splits(p, num_tasks, num_splits);
  p.pool->parallel(num_tasks, [&](int64_t index, int thread) {
    float* scratch = p.scratch[size_t(thread)].data();
    float* result = scratch + attend_scratch_floats(layer.head_dim);
    p.kernels->attend(task_of(p, index, scratch, result));
    write(p, index, result);
  });
}

// A few queries over many keys: the splits are computed side by side and merged in order.
void AttentionOp::run_in_splits(Program& p, int64_t num_tasks, int num_splits) const {
  const int64_t stride = num_heads / layer.num_kv_heads * partial_floats(layer.head_dim);
  if (int64_t(p.partials.size()) < num_tasks * num_splits * stride)
    p.partials.resize(size_t(num_tasks * num_splits * stride));
  p.pool->parallel(num_tasks * num_splits, [&](int64_t i, int thread) {
    const AttendTask task = task_of(p, i / num_splits, p.scratch[size_t(thread)].data(), nullptr);
    p.kernels->attend_split(task, int(i % num_splits), p.partials.data() + i * stride);
  });
  for (int64_t i = 0; i < num_tasks; ++i) {
    float* scratch = p.scratch[0].data();
    float* result = scratch + attend_scratch_floats(layer.head_dim);
    p.kernels->merge_splits(task_of(p, i, scratch, result), num_splits, p.partials.data() + i * num_splits * stride);
    write(p, i, result);
  }
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
