// The Python face of the kernels: packing, a program builder, one call per step. Sizes are proven here, so that
// nothing behind it has to ask.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu.h"
#include "peaks.h"
#include "program.h"
#include "sampler.h"

namespace nb = nanobind;

namespace roseinfer {
namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Weight = std::shared_ptr<PackedWeight>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

Format format_of(const std::string& name) {
  for (int i = 0; i < NUM_FORMATS; ++i)
    if (name == LAYOUTS[i].name) return Format(i);
  throw std::invalid_argument("no kernels for weight format " + name);
}

const Kernels* kernels_of(const std::string& isa) {
  const Kernels* kernels = select_kernels(isa);
  if (!kernels) throw std::invalid_argument("instruction set " + isa + " is not available here");
  return kernels;
}

ActType act_type(const std::string& name) {
  if (name == "f32") return ActType::F32;
  if (name == "q8") return ActType::Q8;
  require(name == "bf16", "activation types are f32, q8 and bf16");
  return ActType::BF16;
}

KvType kv_type(const std::string& name) {
  if (name == "float16") return KvType::F16;
  if (name == "bfloat16") return KvType::BF16;
  if (name == "q8") return KvType::Q8;
  require(name == "float32", "KV types are float32, float16, bfloat16 and q8");
  return KvType::F32;
}

ActKind act_kind(const std::string& name) {
  if (name == "silu") return ActKind::SILU;
  if (name == "gelu_tanh") return ActKind::GELU_TANH;
  require(name == "gelu", "activations are silu, gelu and gelu_tanh");
  return ActKind::GELU_ERF;
}

std::vector<float> floats(const Array<float>& a) { return {a.data(), a.data() + a.shape(0)}; }

template <typename T>
nb::ndarray<nb::numpy, T> numpy(std::vector<T> values, std::vector<size_t> shape) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete (std::vector<T>*)p; });
  return nb::ndarray<nb::numpy, T>(owned->data(), shape.size(), shape.data(), owner);
}

Weight pack(const std::string& format_name, int64_t rows, int64_t columns, Array<uint8_t> source, ThreadPool& pool) {
  const Format format = format_of(format_name);
  require(rows > 0 && columns > 0 && rows < (int64_t(1) << 31) && columns < (int64_t(1) << 31), "bad weight shape");
  require(columns % layout_of(format).file_block == 0, "the columns are not whole blocks of the format");
  require(int64_t(source.shape(0)) == file_bytes(format, rows, columns), "the source has another size than the shape");
  nb::gil_scoped_release release;
  return std::make_shared<PackedWeight>(format, rows, columns, source.data(), pool);
}

nb::ndarray<nb::numpy, float> unpack(const PackedWeight& weight) {
  std::vector<float> out(size_t(weight.rows * weight.columns));
  for (int64_t r = 0; r < weight.rows; ++r) weight.unpack_row(r, out.data() + r * weight.columns);
  return numpy(std::move(out), {size_t(weight.rows), size_t(weight.columns)});
}

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

void check_kernel(const Kernels& kernels, ActType type, const PackedWeight& weight) {
  require(type != ActType::Q8 || !is_float(weight.format), "float weights have no int8 kernel");
  require(type != ActType::BF16 || (weight.format == Format::BF16 && kernels.bf16_tile),
          "bf16 activations want bf16 weights and a CPU with bf16 dot products");
}

// A linear on its own, for kernel tests and benchmarks: x [M, columns] → [M, rows].
nb::ndarray<nb::numpy, float> linear(const std::string& isa, const Weight& weight, Matrix<float> x,
                                     const std::string& act, std::shared_ptr<ThreadPool> pool, int repeat) {
  require(int64_t(x.shape(1)) == weight->columns, "x has another width than the weight");
  const int rows = int(x.shape(0));
  const int64_t columns = weight->columns;
  const ActType type = act_type(act);
  const Buffer in{0, columns}, panels{align64(rows * columns * 4), columns};
  const Buffer out{panels.offset + align64(panels_bytes(type, rows, columns)), weight->rows};
  Program program(kernels_of(isa), std::move(pool), rows, rows, 0, 0, KvType::F32,
                  out.offset + rows * weight->rows * 4);
  check_kernel(*program.kernels, type, *weight);
  std::memcpy(program.floats(in), x.data(), size_t(rows * columns * 4));
  program.step.num_tokens = rows;
  PrepareOp prepare;
  prepare.x = in;
  prepare.out.panels[int(type)] = panels;
  prepare.rows = Rows::TOKENS;
  prepare.run(program);
  LinearOp op;
  op.x = panels;
  op.type = type;
  op.rows = Rows::TOKENS;
  op.segments.push_back({weight, {}, {out, {}}});
  op.combine = Combine::NONE;
  op.act = ActKind::SILU;
  {
    nb::gil_scoped_release release;
    for (int i = 0; i < repeat; ++i) op.run(program);
  }
  const float* result = program.floats(out);
  return numpy(std::vector<float>(result, result + rows * weight->rows), {size_t(rows), size_t(weight->rows)});
}

// Checks everything a step's arrays could get wrong before a kernel sees them.
Step checked_step(const Program& p, int64_t vocab_size, int64_t max_positions, const Array<int32_t>& token_ids,
                  const Array<int32_t>& positions, const Array<int32_t>& row_offsets, const Matrix<int32_t>& tables,
                  const Array<int32_t>& logit_rows) {
  Step s;
  s.num_tokens = int(token_ids.shape(0));
  s.num_rows = int(tables.shape(0));
  s.num_logits = int(logit_rows.shape(0));
  s.table_width = int(tables.shape(1));
  s.token_ids = token_ids.data();
  s.positions = positions.data();
  s.row_offsets = row_offsets.data();
  s.block_tables = tables.data();
  s.logit_rows = logit_rows.data();
  require(s.num_tokens <= p.max_tokens && s.num_logits <= p.max_logits, "the step is larger than the program");
  require(int(positions.shape(0)) == s.num_tokens, "positions and token_ids differ in length");
  require(
      int(row_offsets.shape(0)) == s.num_rows + 1 && s.row_offsets[0] == 0 && s.row_offsets[s.num_rows] == s.num_tokens,
      "row_offsets do not cover the tokens");
  for (int i = 0; i < s.num_logits; ++i)
    require(s.logit_rows[i] >= 0 && s.logit_rows[i] < s.num_tokens, "a logit row is outside the tokens");
  for (int r = 0; r < s.num_rows; ++r) {
    const int first = s.row_offsets[r], last = s.row_offsets[r + 1];
    require(first < last, "a row has no tokens");
    require(last <= s.num_tokens, "row_offsets run past the tokens");
    for (int t = first; t < last; ++t) {
      require(s.token_ids[t] >= 0 && s.token_ids[t] < vocab_size, "a token id is outside the vocabulary");
      require(s.positions[t] == int64_t(s.positions[first]) + (t - first), "a row's positions are not consecutive");
    }
    require(s.positions[first] >= 0 && s.positions[last - 1] < max_positions, "a position is outside the model");
    const int blocks = s.positions[last - 1] / KV_BLOCK + 1;
    require(blocks <= s.table_width, "a position lies behind the block table");
    for (int b = 0; b < blocks; ++b) {
      const int32_t block = s.block_tables[int64_t(r) * s.table_width + b];
      require(block >= 0 && block < p.num_blocks, "a block is outside the KV cache");
    }
  }
  return s;
}

// A Program with what only the builder needs to know.
struct PyProgram : Program {
  int64_t vocab_size = 0, max_positions = int64_t(1) << 31;
  std::vector<SamplerScratch> sampler_scratch;
  using Program::Program;

  template <typename T>
  void add(T op) {
    ops.push_back(std::make_unique<T>(std::move(op)));
  }
  void need_scratch(int64_t floats) {
    for (std::vector<float>& s : scratch)
      if (int64_t(s.size()) < floats) s.resize(size_t(floats));
  }
};

// A field of LogitEdits; nothing is converted, so that the rows may point into it.
template <typename A>
A edits_field(nb::handle edits, const char* name) {
  A array;
  if (!nb::try_cast(nb::getattr(edits, name), array, false))
    throw std::invalid_argument(std::string("edits.") + name + " has another type or shape, or is not contiguous");
  return array;
}

void check_offsets(const Array<int32_t>& offsets, size_t num_rows, size_t total, const char* message) {
  require(offsets.shape(0) == num_rows + 1 && offsets(0) == 0 && int64_t(offsets(num_rows)) == int64_t(total), message);
  for (size_t e = 0; e < num_rows; ++e) require(offsets(e) <= offsets(e + 1), message);
}

bool all_in_vocabulary(const Array<int32_t>& ids, int64_t vocab_size) {
  bool inside = true;  // no early end, so that it is done in vectors
  for (size_t i = 0; i < ids.shape(0); ++i) inside &= uint32_t(ids.data()[i]) < uint32_t(vocab_size);
  return inside;
}

// The LogitEdits of a step, checked, or none.
class Edits {
 public:
  Edits(nb::handle edits, size_t num_sampled, int64_t vocab_size) {
    if (edits.is_none()) return;
    rows_ = edits_field<Array<int32_t>>(edits, "rows");
    repetitions_ = edits_field<Array<float>>(edits, "repetitions");
    presences_ = edits_field<Array<float>>(edits, "presences");
    frequencies_ = edits_field<Array<float>>(edits, "frequencies");
    history_ = edits_field<Array<int32_t>>(edits, "history");
    history_offsets_ = edits_field<Array<int32_t>>(edits, "history_offsets");
    output_starts_ = edits_field<Array<int32_t>>(edits, "output_starts");
    bias_ids_ = edits_field<Array<int32_t>>(edits, "bias_ids");
    bias_values_ = edits_field<Array<float>>(edits, "bias_values");
    bias_offsets_ = edits_field<Array<int32_t>>(edits, "bias_offsets");
    masks_ = edits_field<Matrix<uint32_t>>(edits, "masks");
    mask_rows_ = edits_field<Array<int32_t>>(edits, "mask_rows");
    check_lists(vocab_size);
    edits_of_.resize(num_sampled, nullptr);
    rows_edits_.reserve(rows_.shape(0));
    for (size_t e = 0; e < rows_.shape(0); ++e) add(e);
  }

  // Of the sampled row `i`; null = none.
  const RowEdits* of(size_t i) const { return edits_of_.empty() ? nullptr : edits_of_[i]; }

 private:
  void check_lists(int64_t vocab_size) const {
    const size_t n = rows_.shape(0);
    for (size_t size : {repetitions_.shape(0), presences_.shape(0), frequencies_.shape(0), output_starts_.shape(0),
                        mask_rows_.shape(0)})
      require(size == n, "the edits' arrays differ in length");
    require(bias_ids_.shape(0) == bias_values_.shape(0), "bias_ids and bias_values differ in length");
    check_offsets(history_offsets_, n, history_.shape(0), "history_offsets do not cover the history");
    check_offsets(bias_offsets_, n, bias_ids_.shape(0), "bias_offsets do not cover the biases");
    require(all_in_vocabulary(history_, vocab_size), "a token of the history is outside the vocabulary");
    require(all_in_vocabulary(bias_ids_, vocab_size), "a biased token is outside the vocabulary");
    for (size_t i = 0; i < bias_values_.shape(0); ++i)
      require(bias_values_(i) < std::numeric_limits<float>::infinity(), "a bias is neither finite nor -inf");
  }

  void add(size_t e) {
    require(rows_(e) >= 0 && size_t(rows_(e)) < edits_of_.size(), "an edited row is not sampled");
    require(e == 0 || rows_(e - 1) < rows_(e), "the edited rows are not ascending");
    require(std::isfinite(repetitions_(e)) && repetitions_(e) > 0.0f, "a repetition penalty is not finite and above 0");
    require(std::isfinite(presences_(e)) && std::isfinite(frequencies_(e) * 0x1p31f), "a penalty is not finite");
    require(output_starts_(e) >= 0, "an output starts before its row's history");
    const int64_t mask = mask_rows_(e), words = int64_t(masks_.shape(1));
    require(mask >= -1 && mask < int64_t(masks_.shape(0)) && (mask < 0 || words > 0), "a mask is outside the masks");
    RowEdits edits;
    edits.repetition = repetitions_(e), edits.presence = presences_(e), edits.frequency = frequencies_(e);
    edits.history = history_.data() + history_offsets_(e);
    edits.history_len = history_offsets_(e + 1) - history_offsets_(e);
    edits.output_start = output_starts_(e);
    edits.bias_ids = bias_ids_.data() + bias_offsets_(e);
    edits.bias_values = bias_values_.data() + bias_offsets_(e);
    edits.num_biases = bias_offsets_(e + 1) - bias_offsets_(e);
    edits.mask = mask < 0 ? nullptr : masks_.data() + mask * words;
    edits.mask_tokens = 32 * words;
    edits_of_[size_t(rows_(e))] = &rows_edits_.emplace_back(edits);
  }

  Array<int32_t> rows_, history_, history_offsets_, output_starts_, bias_ids_, bias_offsets_, mask_rows_;
  Array<float> repetitions_, presences_, frequencies_, bias_values_;
  Matrix<uint32_t> masks_;
  std::vector<RowEdits> rows_edits_;
  std::vector<const RowEdits*> edits_of_;  // of each sampled row
};

// SampleOutput's fields.
nb::tuple output_of(std::vector<Sample> samples) {
  const size_t n = samples.size();
  std::vector<int32_t> ids(n);
  std::vector<float> logprobs(n);
  nb::list top_ids, top_logprobs;
  for (size_t i = 0; i < n; ++i) {
    ids[i] = samples[i].token_id;
    logprobs[i] = samples[i].logprob;
    const size_t count = samples[i].top_ids.size();
    top_ids.append(numpy(std::move(samples[i].top_ids), {count}));
    top_logprobs.append(numpy(std::move(samples[i].top_logprobs), {count}));
  }
  return nb::make_tuple(numpy(std::move(ids), {n}), numpy(std::move(logprobs), {n}), top_ids, top_logprobs);
}

// sample_one(row i, its logits, scratch) for every row, over the threads.
template <typename SampleOne>
nb::tuple for_logit_rows(PyProgram& p, const Array<int32_t>& rows, const SampleOne& sample_one) {
  const size_t n = rows.shape(0);
  for (size_t i = 0; i < n; ++i) require(rows(i) >= 0 && rows(i) < p.step.num_logits, "a sampled row has no logits");
  p.sampler_scratch.resize(size_t(p.pool->size()));
  std::vector<Sample> samples(n);
  {
    nb::gil_scoped_release release;
    p.pool->parallel(int64_t(n), [&](int64_t i, int thread) {
      const float* logits = p.floats(p.logits) + rows(i) * p.vocab_size;
      samples[size_t(i)] = sample_one(size_t(i), logits, p.sampler_scratch[size_t(thread)]);
    });
  }
  return output_of(std::move(samples));
}

nb::tuple sample(PyProgram& p, Array<int32_t> rows, Array<float> temperatures, Array<int32_t> top_ks,
                 Array<float> top_ps, Array<float> min_ps, Array<uint64_t> seeds, Array<int32_t> choices,
                 Array<int64_t> positions, Array<int32_t> num_logprobs, nb::object logit_edits) {
  const size_t n = rows.shape(0);
  for (size_t size : {temperatures.shape(0), top_ks.shape(0), top_ps.shape(0), min_ps.shape(0), seeds.shape(0),
                      choices.shape(0), positions.shape(0), num_logprobs.shape(0)})
    require(size == n, "the sampling arrays differ in length");
  const Edits edits(logit_edits, n, p.vocab_size);
  return for_logit_rows(p, rows, [&](size_t i, const float* logits, SamplerScratch& scratch) {
    const SampleParams params{temperatures(i), top_ks(i),  top_ps(i),    min_ps(i),
                              seeds(i),        choices(i), positions(i), num_logprobs(i)};
    return sample_row(*p.kernels, logits, p.vocab_size, params, edits.of(i), scratch);
  });
}

nb::tuple score(PyProgram& p, Array<int32_t> rows, Array<int32_t> token_ids, Array<int32_t> num_logprobs) {
  const size_t n = rows.shape(0);
  require(token_ids.shape(0) == n && num_logprobs.shape(0) == n, "the scoring arrays differ in length");
  require(all_in_vocabulary(token_ids, p.vocab_size), "a scored token is outside the vocabulary");
  for (size_t i = 0; i < n; ++i) require(num_logprobs(i) >= 0, "num_logprobs is negative");
  return for_logit_rows(p, rows, [&](size_t i, const float* logits, SamplerScratch& scratch) {
    return score_row(*p.kernels, logits, p.vocab_size, token_ids(i), num_logprobs(i), scratch);
  });
}

nb::dict features() {
  const CpuFeatures f = cpu_features();
  nb::dict d;
  d["avx2"] = f.avx2;
  d["avx512_vnni"] = f.avx512;
  d["avx512_bf16"] = f.avx512_bf16;
  return d;
}

KvLayer kv_layer(const PyProgram& p, int64_t offset, int num_kv_heads, int head_dim) {
  require(head_dim > 0 && head_dim <= MAX_HEAD_DIM, "head_dim is larger than the kernels take");
  const int64_t bytes = int64_t(num_kv_heads) * 2 * kv_part_bytes(p.kv_type, head_dim);
  require(num_kv_heads > 0 && offset >= 0 && offset + bytes <= p.block_bytes, "a layer lies outside its KV block");
  return {offset, num_kv_heads, head_dim};
}

// Whether every form of an output has the width; int8 panels are written in whole groups.
bool fits(const Output& out, int64_t width) {
  bool exists = out.floats.exists();
  for (const Buffer& b : out.panels) {
    exists |= b.exists();
    if (b.exists() && b.width != width) return false;
  }
  return exists && (!out.floats.exists() || out.floats.width == width) &&
         (!out.panels[int(ActType::Q8)].exists() || width % GROUP == 0);
}

std::vector<float> padded_to_groups(const Array<float>& bias) {
  std::vector<float> values = floats(bias);
  values.resize((values.size() + GROUP - 1) / GROUP * GROUP);
  return values;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a daemon thread keeps its program when the interpreter ends
  m.doc() = "roseinfer's CPU kernels";
  m.attr("KV_BLOCK") = KV_BLOCK;
  m.attr("MAX_HEAD_DIM") = MAX_HEAD_DIM;
  m.def("cpu_features", features);
  m.def("available_isas", available_isas);
  m.def("isa", [](const std::string& isa) { return std::string(kernels_of(isa)->name); }, nb::arg("isa") = "auto");
  m.def("has_bf16_dot", [](const std::string& isa) { return kernels_of(isa)->bf16_tile != nullptr; });
  m.def("panels_bytes", [](const std::string& type, int64_t rows, int64_t columns) {
    return panels_bytes(act_type(type), rows, columns);
  });
  m.def("kv_head_bytes",
        [](const std::string& type, int head_dim) { return 2 * kv_part_bytes(kv_type(type), head_dim); });
  m.def("philox", [](Array<uint32_t> counter, Array<uint32_t> key) {
    require(counter.shape(0) == 4 && key.shape(0) == 2, "philox takes four counter words and two key words");
    std::vector<uint32_t> out(4);
    philox(counter.data(), key.data(), out.data());
    return numpy(std::move(out), {4});
  });
  m.def("pack", pack);
  m.def("linear", linear, nb::arg("isa"), nb::arg("weight"), nb::arg("x"), nb::arg("act"), nb::arg("pool"),
        nb::arg("repeat") = 1);

  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int>())
      .def("size", &ThreadPool::size)
      .def(
          "count_progress",
          [](ThreadPool& pool, nb::ndarray<uint64_t, nb::shape<1>, nb::c_contig, nb::device::cpu> counter) {
            pool.count_progress(counter.data());
          },
          nb::keep_alive<1, 2>());
  bind_peaks(m);
  nb::class_<PackedWeight>(m, "PackedWeight")
      .def_ro("rows", &PackedWeight::rows)
      .def_ro("columns", &PackedWeight::columns)
      .def_prop_ro("nbytes", [](const PackedWeight& w) { return w.buffer.size(); })
      .def("unpack", unpack);
  nb::class_<Buffer>(m, "Buffer")
      .def(nb::init<int64_t, int64_t>(), nb::arg("offset") = -1, nb::arg("width") = 0)
      .def_ro("offset", &Buffer::offset)
      .def_ro("width", &Buffer::width);

  nb::class_<Output>(m, "Output")
      .def(
          "__init__",
          [](Output* self, Buffer floats, Buffer f32, Buffer q8, Buffer bf16) {
            new (self) Output{floats, {f32, q8, bf16}};
          },
          nb::arg("floats"), nb::arg("f32"), nb::arg("q8"), nb::arg("bf16"));

  nb::class_<PyProgram>(m, "Program")
      .def(
          "__init__",
          [](PyProgram* self, const std::string& isa, std::shared_ptr<ThreadPool> pool, int max_tokens, int max_logits,
             int num_blocks, int64_t block_bytes, const std::string& kv_dtype, int64_t arena_bytes, int64_t vocab_size,
             int64_t max_positions, Buffer logits, int kv_fd, int64_t kv_offset) {
            require(max_tokens > 0 && max_logits > 0 && num_blocks > 0 && block_bytes > 0, "bad program sizes");
            new (self) PyProgram(kernels_of(isa), std::move(pool), max_tokens, max_logits, num_blocks, block_bytes,
                                 kv_type(kv_dtype), arena_bytes, kv_fd, kv_offset);
            self->vocab_size = vocab_size;
            self->max_positions = max_positions;
            self->logits = logits;
          },
          nb::arg("isa"), nb::arg("pool"), nb::arg("max_tokens"), nb::arg("max_logits"), nb::arg("num_blocks"),
          nb::arg("block_bytes"), nb::arg("kv_dtype"), nb::arg("arena_bytes"), nb::arg("vocab_size"),
          nb::arg("max_positions"), nb::arg("logits"), nb::arg("kv_fd") = -1, nb::arg("kv_offset") = 0)
      .def("add_rope", &Program::add_rope)
      .def("add_embedding",
           [](PyProgram& p, Weight weight, Buffer out, float scale, bool by_position) {
             require(weight->columns == out.width, "an embedding has another width than its output");
             require(weight->rows >= (by_position ? p.max_positions : p.vocab_size), "an embedding lacks rows");
             EmbeddingOp op;
             op.weight = std::move(weight), op.out = out, op.scale = scale, op.by_position = by_position;
             p.add(std::move(op));
           })
      .def(
          "add_norm",
          [](PyProgram& p, Buffer x, Output out, Array<float> weight, std::optional<Array<float>> bias, float eps,
             int num_heads, int rows) {
            require(int64_t(weight.shape(0)) * num_heads == x.width, "a norm's weight does not fit its input");
            p.need_scratch(x.width);
            NormOp op;
            op.x = x, op.out = out, op.weight = floats(weight);
            if (bias) op.bias = floats(*bias);
            op.eps = eps, op.num_heads = num_heads, op.rows = Rows(rows);
            p.add(std::move(op));
          },
          nb::arg("x"), nb::arg("out"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("eps"), nb::arg("num_heads"),
          nb::arg("rows"))
      .def("add_prepare",
           [](PyProgram& p, Buffer x, Output out, int rows) {
             PrepareOp op;
             op.x = x, op.out = out, op.rows = Rows(rows);
             p.add(std::move(op));
           })
      .def("add_linear",
           [](PyProgram& p, Buffer x, const std::string& type, int rows, nb::list weights, nb::list biases,
              std::vector<Output> outs, const std::string& combine, const std::string& act, Buffer residual) {
             LinearOp op;
             op.x = x, op.type = act_type(type), op.rows = Rows(rows), op.residual = residual;
             for (size_t i = 0; i < outs.size(); ++i) {
               Weight w = nb::cast<Weight>(weights[i]);
               require(w->columns == x.width, "a linear's input has another width than its weight");
               require(fits(outs[i], w->rows), "a linear's output does not fit its weight");
               check_kernel(*p.kernels, op.type, *w);
               std::vector<float> bias;
               if (!biases[i].is_none()) bias = padded_to_groups(nb::cast<Array<float>>(biases[i]));
               require(bias.empty() || int64_t(bias.size()) >= w->rows, "a bias is shorter than its weight");
               op.segments.push_back({std::move(w), std::move(bias), outs[i]});
             }
             op.combine = combine == "gated" ? Combine::GATED : combine.empty() ? Combine::NONE : Combine::ACTIVATE;
             op.act = combine.empty() ? ActKind::SILU : act_kind(act);
             require(op.combine != Combine::GATED || op.segments.size() == 2, "a gate wants two weights");
             p.add(std::move(op));
           })
      .def(
          "add_store_kv",
          [](PyProgram& p, Buffer q, Buffer k, Buffer v, int num_heads, int64_t kv_offset, int num_kv_heads,
             int head_dim, std::optional<Array<float>> q_norm, std::optional<Array<float>> k_norm, float eps,
             int rope) {
            StoreKvOp op;
            op.q = q, op.k = k, op.v = v, op.num_heads = num_heads;
            op.layer = kv_layer(p, kv_offset, num_kv_heads, head_dim);
            if (q_norm) op.q_norm = floats(*q_norm);
            if (k_norm) op.k_norm = floats(*k_norm);
            op.eps = eps, op.rope = rope;
            p.add(std::move(op));
          },
          nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("num_heads"), nb::arg("kv_offset"), nb::arg("num_kv_heads"),
          nb::arg("head_dim"), nb::arg("q_norm").none(), nb::arg("k_norm").none(), nb::arg("eps"), nb::arg("rope"))
      .def("add_attention",
           [](PyProgram& p, Buffer q, Output out, int num_heads, int64_t kv_offset, int num_kv_heads, int head_dim,
              float scale, int window) {
             require(q.exists() && q.width == int64_t(num_heads) * head_dim && fits(out, q.width),
                     "attention's input or output does not fit its heads");
             p.need_scratch(attend_scratch_floats(head_dim) +
                            int64_t(ATTEND_TOKENS) * (num_heads / num_kv_heads) * head_dim);
             AttentionOp op;
             op.q = q, op.out = out, op.num_heads = num_heads;
             op.layer = kv_layer(p, kv_offset, num_kv_heads, head_dim);
             op.scale = scale, op.window = window;
             p.add(std::move(op));
           })
      .def("add_add",
           [](PyProgram& p, Buffer a, Buffer b, Buffer out, int rows) {
             AddOp op;
             op.a = a, op.b = b, op.out = out, op.rows = Rows(rows);
             p.add(std::move(op));
           })
      .def("add_activate",
           [](PyProgram& p, Buffer x, Buffer out, const std::string& act, int rows) {
             ActivateOp op;
             op.x = x, op.out = out, op.act = act_kind(act), op.rows = Rows(rows);
             p.add(std::move(op));
           })
      .def("add_gated",
           [](PyProgram& p, Buffer gate, Buffer up, Buffer out, const std::string& act, int rows) {
             GatedOp op;
             op.gate = gate, op.up = up, op.out = out, op.act = act_kind(act), op.rows = Rows(rows);
             p.add(std::move(op));
           })
      .def("add_rope_op",
           [](PyProgram& p, Buffer x, Buffer out, int rope, int num_heads) {
             RopeOp op;
             op.x = x, op.out = out, op.rope = rope, op.num_heads = num_heads;
             p.add(std::move(op));
           })
      .def("add_take_rows",
           [](PyProgram& p, Buffer x, Buffer out) {
             TakeRowsOp op;
             op.x = x, op.out = out;
             p.add(std::move(op));
           })
      .def("forward",
           [](PyProgram& p, Array<int32_t> token_ids, Array<int32_t> positions, Array<int32_t> row_offsets,
              Matrix<int32_t> block_tables, Array<int32_t> logit_rows) {
             const Step step = checked_step(p, p.vocab_size, p.max_positions, token_ids, positions, row_offsets,
                                            block_tables, logit_rows);
             nb::gil_scoped_release release;
             p.forward(step);
           })
      .def("sample", sample, nb::arg("rows"), nb::arg("temperatures"), nb::arg("top_ks"), nb::arg("top_ps"),
           nb::arg("min_ps"), nb::arg("seeds"), nb::arg("choices"), nb::arg("positions"), nb::arg("num_logprobs"),
           nb::arg("edits") = nb::none())
      .def("score", score)
      .def("logits",
           [](const PyProgram& p) {
             const size_t rows = size_t(p.step.num_logits), columns = size_t(p.vocab_size);
             const float* values = p.floats(p.logits);
             return numpy(std::vector<float>(values, values + rows * columns), {rows, columns});
           })
      .def("start_profile",
           [](PyProgram& p) {
             p.times.clear();
             p.is_profiled = true;
           })
      .def("profile",
           [](PyProgram& p) {
             p.is_profiled = false;
             std::vector<std::tuple<std::string, int64_t, double>> rows;
             for (size_t i = 0; i < p.times.size(); ++i)
               rows.emplace_back(p.ops[i]->name(), p.times[i].calls, p.times[i].seconds);
             return rows;
           })
      .def_prop_ro("kv_bytes", [](const PyProgram& p) { return p.kv.size(); })
      .def_prop_ro("arena_bytes", [](const PyProgram& p) { return p.arena.size(); });
}

}  // namespace roseinfer
