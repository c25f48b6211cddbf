// Every kernel, once, over the sixteen-lane vectors of the including file's instruction set.
//
// Row independence: a kernel computes an output by the same sequence of operations whatever `count` rows are
// given beside it. Along the columns and along the keys it goes in ascending order, at fixed absolute borders.

#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

namespace roseinfer {
namespace {

constexpr float NEG_INF = -std::numeric_limits<float>::infinity();

// ---- elementary functions -----------------------------------------------------------------------------------

// e^x by 2^n × polynomial(r) (Cephes' coefficients), relative error below 2e-7; x is clamped to [-87, 88].
// A NaN stays one (min and max give their second operand then): a broken row has to be seen in its logits.
inline F exp(F x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));
  const F n = round(x * set1(1.44269504088896341f));
  F r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.0f));
  return scale_by_power(p, n);
}

inline float exp1(float x) {
  float lanes[16];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

inline F silu(F x) { return x / (set1(1.0f) + exp(zero_f() - x)); }

// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x / (1 + e^(-2u)).
inline F gelu_tanh(F x) {
  const F u = set1(0.7978845608028654f) * fma(set1(0.044715f) * x * x, x, x);
  return x / (set1(1.0f) + exp(set1(-2.0f) * u));
}

// A rational approximation of erf on [-4, 4], accurate to a few units in the last place.
inline F erf(F x) {
  x = min(max(x, set1(-4.0f)), set1(4.0f));
  const F y = x * x;
  F p = set1(-2.72614225801306e-10f);
  p = fma(p, y, set1(2.77068142495902e-08f));
  p = fma(p, y, set1(-2.10102402082508e-06f));
  p = fma(p, y, set1(-5.69250639462346e-05f));
  p = fma(p, y, set1(-7.34990630326855e-04f));
  p = fma(p, y, set1(-2.95459980854025e-03f));
  p = fma(p, y, set1(-1.60960333262415e-02f));
  F q = set1(-1.45660718464996e-05f);
  q = fma(q, y, set1(-2.13374055278905e-04f));
  q = fma(q, y, set1(-1.68282697438203e-03f));
  q = fma(q, y, set1(-7.37332916720468e-03f));
  q = fma(q, y, set1(-1.42647390514189e-02f));
  return x * p / q;
}

inline F gelu_erf(F x) { return set1(0.5f) * x * (set1(1.0f) + erf(x * set1(0.7071067811865475f))); }

inline F activation(F x, ActKind kind) {
  switch (kind) {
    case ActKind::SILU: return silu(x);
    case ActKind::GELU_TANH: return gelu_tanh(x);
    default: return gelu_erf(x);
  }
}

// Calls body(offset, count) for every 16 elements; the last may be fewer, then through a padded copy.
inline F load_part(const float* p, int64_t count, float fill = 0.0f) {
  if (count >= 16) return load(p);
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = i < count ? p[i] : fill;
  return load(lanes);
}

inline void store_part(float* p, F a, int64_t count) {
  if (count >= 16) return store(p, a);
  float lanes[16];
  store(lanes, a);
  std::memcpy(p, lanes, size_t(count) * 4);
}

// ---- linear: one tile of 16 weight rows × a few activation rows -----------------------------------------------

template <Format FMT>
inline void load_quads(const uint8_t* group, Q quads[8]) {
  constexpr Layout l = layout_of(FMT);
  if constexpr (l.bytes >= 0) {
    for (int z = 0; z < 8; ++z) quads[z] = load_q(group + l.bytes + 64 * z);
  }
  if constexpr (l.nibbles >= 0) {
    for (int z = 0; z < 4; ++z) {
      const Q packed = load_q(group + l.nibbles + 64 * z);
      quads[z] = low_nibbles(packed);
      quads[z + 4] = high_nibbles(packed);
    }
  }
  if constexpr (l.crumbs >= 0) {
    for (int z = 0; z < 2; ++z) {
      const Q packed = load_q(group + l.crumbs + 64 * z);
      const Q two[4] = {two_bits<0>(packed), two_bits<2>(packed), two_bits<4>(packed), two_bits<6>(packed)};
      for (int j = 0; j < 4; ++j) {
        if constexpr (l.nibbles >= 0) quads[4 * z + j] = or_shifted<4>(quads[4 * z + j], two[j]);
        else quads[4 * z + j] = two[j];
      }
    }
  }
  if constexpr (l.bits >= 0) {
    constexpr int value = l.nibbles >= 0 ? 16 : 4;
    for (int z = 0; z < 8; ++z) quads[z] = or_bits<value>(quads[z], group + l.bits + 8 * z);
  }
}

inline F load_low4(const uint8_t* p) {
  uint8_t low[16];
  for (int i = 0; i < 16; ++i) low[i] = p[i] & 15;
  return load_u8(low);
}

inline F load_high4(const uint8_t* p) {
  uint8_t high[16];
  for (int i = 0; i < 16; ++i) high[i] = p[i] >> 4;
  return load_u8(high);
}

// The 16 rows' scales of half `h` of a group (h = 0 where a scale covers all 32 columns).
template <Format FMT>
inline F load_scale(const uint8_t* header, const uint8_t* group, int h) {
  constexpr Layout l = layout_of(FMT);
  if constexpr (!l.k_quant) return load_half((const uint16_t*)(group + l.scales));
  const F d = load_half((const uint16_t*)header);
  const uint8_t* p = group + l.scales + 16 * h;
  if constexpr (FMT == Format::Q2_K) return d * load_low4(p);
  if constexpr (l.zero != 0) return d * load_i8((const int8_t*)p);
  return d * load_u8(p);
}

// What is added per value: m of the q4_1 kind, -dmin × m of the K kind.
template <Format FMT>
inline F load_min(const uint8_t* header, const uint8_t* group, int h) {
  constexpr Layout l = layout_of(FMT);
  if constexpr (!l.k_quant) return load_half((const uint16_t*)(group + l.mins));
  const F dmin = zero_f() - load_half((const uint16_t*)(header + 32));
  const uint8_t* p = group + l.mins + 16 * h;
  if constexpr (FMT == Format::Q2_K) return dmin * load_high4(p);
  return dmin * load_u8(p);
}

// A cursor over a tile's groups and headers.
template <Format FMT>
struct Groups {
  const uint8_t* header;
  const uint8_t* group;
  explicit Groups(const uint8_t* tile) : header(tile), group(tile + layout_of(FMT).header_bytes) {}
  void next(int64_t index) {  // from group `index` to the one behind it
    constexpr Layout l = layout_of(FMT);
    group += l.group_bytes;
    if constexpr (l.k_quant) {
      if (index % l.groups_per_super == l.groups_per_super - 1) {
        header = group;
        group += l.header_bytes;
      }
    }
  }
};

template <Format FMT, int M>
inline void q8_tile_m(const uint8_t* tile, int64_t columns, const uint8_t* x, int64_t stride, float* out) {
  constexpr Layout l = layout_of(FMT);
  constexpr bool is_signed = FMT == Format::Q8_0;
  constexpr int halves = l.halves ? 2 : 1;
  constexpr int quads_per_scale = 8 / halves;
  F acc[M];
  for (int m = 0; m < M; ++m) acc[m] = zero_f();
  const int64_t num_groups = columns / GROUP;
  const Q8Row first = q8_row((uint8_t*)x, columns);
  const int32_t* sums = l.halves ? first.sums16 : first.sums32;
  const float* fsums = l.halves ? first.fsums16 : first.fsums32;
  Groups<FMT> at(tile);
  for (int64_t g = 0; g < num_groups; ++g) {
    Q quads[8];
    load_quads<FMT>(at.group, quads);
    for (int h = 0; h < halves; ++h) {
      const F scale = load_scale<FMT>(at.header, at.group, h);
      F minimum;
      if constexpr (l.has_min) minimum = load_min<FMT>(at.header, at.group, h);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const int64_t row = m * stride;  // rows lie at one stride, so one row's pointers serve all
        const int64_t sum_at = (g * halves + h) * 4 + row;
        int32_t zero_sum = 0;
        if constexpr (l.zero != 0) zero_sum = -l.zero * *(const int32_t*)((const uint8_t*)sums + sum_at);
        I dot = set1_i(zero_sum);
        const int8_t* values = (const int8_t*)x + row + g * GROUP + h * 16;
#pragma GCC unroll 8
        for (int z = 0; z < quads_per_scale; ++z) dot = dot4<is_signed>(dot, quads[h * 4 + z], values + 4 * z);
        const float act_scale = *(const float*)((const uint8_t*)(first.scales + g) + row);
        acc[m] = fma(scale * set1(act_scale), to_float(dot), acc[m]);
        if constexpr (l.has_min) acc[m] = fma(minimum, set1(*(const float*)((const uint8_t*)fsums + sum_at)), acc[m]);
      }
    }
    at.next(g);
  }
  for (int m = 0; m < M; ++m) store(out + 16 * m, acc[m]);
}

// weights[k][16 rows] of one group as float32, exactly what quant/ says.
template <Format FMT>
inline void dequantize_group(const Groups<FMT>& at, float* weights) {
  constexpr Layout l = layout_of(FMT);
  constexpr int halves = l.halves ? 2 : 1;
  Q quads[8];
  load_quads<FMT>(at.group, quads);
  for (int h = 0; h < halves; ++h) {
    const F scale = load_scale<FMT>(at.header, at.group, h);
    F minimum = zero_f();
    if constexpr (l.has_min) minimum = load_min<FMT>(at.header, at.group, h);
    for (int z = h * 4; z < h * 4 + 8 / halves; ++z) {
      const F stored[4] = {byte_of_four<0>(quads[z]), byte_of_four<1>(quads[z]), byte_of_four<2>(quads[z]),
                           byte_of_four<3>(quads[z])};
      for (int j = 0; j < 4; ++j) {
        F value = scale * (stored[j] - set1(float(l.zero)));
        if constexpr (l.has_min) value = value + minimum;
        store(weights + 16 * (4 * z + j), value);
      }
    }
  }
}

// Columns k0 .. k0 + count - 1 of an unquantised tile as float32; k0 is even.
template <Format FMT>
inline void load_columns(const uint8_t* tile, int64_t k0, int count, float* weights) {
  if constexpr (FMT == Format::BF16) {  // columns 2i and 2i + 1 lie side by side
    for (int k = 0; k < count; k += 2) {
      const Q pairs = load_q(tile + (k0 + k) / 2 * 64);
      store(weights + 16 * k, first_bfloats(pairs));
      store(weights + 16 * (k + 1), second_bfloats(pairs));
    }
  } else {
    for (int k = 0; k < count; ++k) {
      if constexpr (FMT == Format::F32) store(weights + 16 * k, load((const float*)tile + (k0 + k) * 16));
      if constexpr (FMT == Format::F16) store(weights + 16 * k, load_half((const uint16_t*)tile + (k0 + k) * 16));
    }
  }
}

// One group's columns in order onto the accumulators of M rows.
template <int M>
inline void fma_columns(const float* weights, int count, const uint8_t* x, int64_t stride, int64_t k0, F acc[M]) {
  for (int k = 0; k < count; ++k) {
    const F w = load(weights + 16 * k);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) acc[m] = fma(w, set1(*((const float*)(x + m * stride) + k0 + k)), acc[m]);
  }
}

template <Format FMT, int M>
inline void f32_tile_m(const uint8_t* tile, int64_t columns, const uint8_t* x, int64_t stride, float* out) {
  F acc[M];
  for (int m = 0; m < M; ++m) acc[m] = zero_f();
  alignas(64) float weights[GROUP * 16];
  if constexpr (is_float(FMT)) {
    for (int64_t k0 = 0; k0 < columns; k0 += GROUP) {
      const int count = int(columns - k0 < GROUP ? columns - k0 : GROUP);
      load_columns<FMT>(tile, k0, count, weights);
      fma_columns<M>(weights, count, x, stride, k0, acc);
    }
  } else {
    Groups<FMT> at(tile);
    for (int64_t g = 0; g < columns / GROUP; ++g) {
      dequantize_group<FMT>(at, weights);
      fma_columns<M>(weights, GROUP, x, stride, g * GROUP, acc);
      at.next(g);
    }
  }
  for (int m = 0; m < M; ++m) store(out + 16 * m, acc[m]);
}

// Cuts `count` rows into sizes that are compiled: powers of two up to LARGEST.
template <int LARGEST, typename Run>
inline void by_powers_of_two(int count, Run run, int m = 0) {
  for (; count - m >= LARGEST; m += LARGEST) run(std::integral_constant<int, LARGEST>(), m);
  if constexpr (LARGEST > 1) by_powers_of_two<LARGEST / 2>(count, run, m);
}

constexpr int ROWS_AT_ONCE = REGISTER_ROWS < MAX_TILE_M ? REGISTER_ROWS : MAX_TILE_M;
constexpr int QUERIES_AT_ONCE = REGISTER_ROWS < ATTEND_QUERIES ? REGISTER_ROWS : ATTEND_QUERIES;

template <Format FMT>
void q8_tile(const uint8_t* tile, int64_t columns, const uint8_t* x, int64_t stride, int count, float* out) {
  by_powers_of_two<ROWS_AT_ONCE>(count, [&](auto size, int m) {
    q8_tile_m<FMT, decltype(size)::value>(tile, columns, x + m * stride, stride, out + 16 * m);
  });
}

template <Format FMT>
void f32_tile(const uint8_t* tile, int64_t columns, const uint8_t* x, int64_t stride, int count, float* out) {
  by_powers_of_two<ROWS_AT_ONCE>(count, [&](auto size, int m) {
    f32_tile_m<FMT, decltype(size)::value>(tile, columns, x + m * stride, stride, out + 16 * m);
  });
}

// ---- rows ---------------------------------------------------------------------------------------------------

void quantize_row(const float* x, int64_t n, uint8_t* out) {
  const Q8Row row = q8_row(out, n);
  for (int64_t g = 0; g < n / GROUP; ++g) {
    const F a = load(x + g * GROUP), b = load(x + g * GROUP + 16);
    const float amax = max_lane(max(abs(a), abs(b)));
    const float scale = amax / 127.0f;
    const float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
    // A NaN or an infinity makes the scale NaN, which the int8 values could not carry to the output.
    const bool finite = amax <= std::numeric_limits<float>::max() && sum(a * zero_f() + b * zero_f()) == 0.0f;
    const F limit = set1(127.0f);
    const F qa = max(min(a * set1(inverse), limit), zero_f() - limit);
    const F qb = max(min(b * set1(inverse), limit), zero_f() - limit);
    const int32_t sum_a = store_i8(row.values + g * GROUP, qa);
    const int32_t sum_b = store_i8(row.values + g * GROUP + 16, qb);
    row.scales[g] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
    row.sums16[2 * g] = sum_a;
    row.sums16[2 * g + 1] = sum_b;
    row.sums32[g] = sum_a + sum_b;
    row.fsums16[2 * g] = row.scales[g] * float(sum_a);
    row.fsums16[2 * g + 1] = row.scales[g] * float(sum_b);
    row.fsums32[g] = row.scales[g] * float(sum_a + sum_b);
  }
}

void bf16_row(const float* x, int64_t n, uint8_t* out) {
  uint16_t* row = (uint16_t*)out;
  for (int64_t i = 0; i < n; ++i) row[i] = float_to_bfloat(x[i]);
  if (n % 2) row[n] = 0;
}

inline float sum_row(const float* x, int64_t n) {
  F total = zero_f();
  for (int64_t i = 0; i < n; i += 16) total = total + load_part(x + i, n - i);
  return sum(total);
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F squares = zero_f();
  for (int64_t i = 0; i < n; i += 16) {
    const F v = load_part(x + i, n - i);
    squares = fma(v, v, squares);
  }
  const F factor = set1(1.0f / std::sqrt(sum(squares) / float(n) + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const F v = load_part(x + i, n - i) * factor * load_part(weight + i, n - i);
    store_part(out + i, v, n - i);
  }
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* out) {
  const float mean = sum_row(x, n) / float(n);
  F squares = zero_f();
  for (int64_t i = 0; i < n; i += 16) {
    const F d = load_part(x + i, n - i, mean) - set1(mean);
    squares = fma(d, d, squares);
  }
  const F factor = set1(1.0f / std::sqrt(sum(squares) / float(n) + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const F d = (load_part(x + i, n - i) - set1(mean)) * factor;
    store_part(out + i, fma(d, load_part(weight + i, n - i), load_part(bias + i, n - i)), n - i);
  }
}

void rope(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i += 16) {
    const int64_t left = half - i;
    const F a = load_part(x + i, left), b = load_part(x + half + i, left);
    const F c = load_part(cos + i, left), s = load_part(sin + i, left);
    store_part(x + i, a * c - b * s, left);
    store_part(x + half + i, b * c + a * s, left);
  }
}

void add(const float* a, const float* b, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) store_part(out + i, load_part(a + i, n - i) + load_part(b + i, n - i), n - i);
}

void activate(const float* x, int64_t n, ActKind kind, float* out) {
  for (int64_t i = 0; i < n; i += 16) store_part(out + i, activation(load_part(x + i, n - i), kind), n - i);
}

void gated(const float* gate, const float* up, int64_t n, ActKind kind, float* out) {
  for (int64_t i = 0; i < n; i += 16)
    store_part(out + i, activation(load_part(gate + i, n - i), kind) * load_part(up + i, n - i), n - i);
}

float row_max(const float* x, int64_t n, bool* is_sound) {
  F best = set1(NEG_INF), poison = zero_f();
  for (int64_t i = 0; i < n; i += 16) {
    const F v = load_part(x + i, n - i, NEG_INF);
    best = max(v, best);
    // max(v, 0) × 0 is NaN for NaN and +inf only: maxps hands back its second operand when the first is NaN.
    poison = poison + max(zero_f(), v) * zero_f();
  }
  *is_sound = sum(poison) == 0.0f;
  return max_lane(best);
}

float sum_exp(const float* x, int64_t n, float offset, float factor) {
  F total = zero_f();
  for (int64_t i = 0; i < n; i += 16) {
    const F e = exp((load_part(x + i, n - i, NEG_INF) - set1(offset)) * set1(factor));
    total = total + (n - i >= 16 ? e : keep_lanes(e, 0, int(n - i), 0.0f));
  }
  return sum(total);
}

// ---- attention ----------------------------------------------------------------------------------------------

template <KvType TYPE>
inline F load_kv(const uint8_t* base, int64_t element) {
  if constexpr (TYPE == KvType::F16) return load_half((const uint16_t*)base + element);
  if constexpr (TYPE == KvType::BF16) return load_bfloat((const uint16_t*)base + element);
  return load((const float*)base + element);
}

inline void store_one(uint8_t* base, int64_t element, KvType type, float x) {
  if (type == KvType::F16) ((uint16_t*)base)[element] = float_to_half(x);
  else if (type == KvType::BF16) ((uint16_t*)base)[element] = float_to_bfloat(x);
  else ((float*)base)[element] = x;
}

void store_key(const float* x, int head_dim, KvType type, uint8_t* block, int slot) {
  for (int d = 0; d < head_dim; ++d) store_one(block, int64_t(d) * KV_BLOCK + slot, type, x[d]);
}

void store_value(const float* x, int head_dim, KvType type, uint8_t* block, int slot) {
  const int64_t row = int64_t(slot) * padded_head_dim(head_dim);
  for (int d = 0; d < head_dim; ++d) store_one(block, row + d, type, x[d]);
  for (int d = head_dim; d < padded_head_dim(head_dim); ++d) store_one(block, row + d, type, 0.0f);
}

struct KeyRange {
  int first, last;  // positions first <= p < last
};

inline KeyRange keys_of(const AttendTask& task, int query) {
  const int position = task.first_position + query / task.group;
  const int first = task.window > 0 && position + 1 > task.window ? position + 1 - task.window : 0;
  return {first, position + 1};
}

inline KeyRange cut(KeyRange range, int first, int last) {
  return {range.first > first ? range.first : first, range.last < last ? range.last : last};
}

// scores[i][16] of one block of keys for N queries, each a fixed ascending sum over head_dim.
template <KvType TYPE, int N>
inline void score_block(const uint8_t* keys, const float* q, int64_t q_step, int head_dim, float* scores) {
  F s[N];
  for (int i = 0; i < N; ++i) s[i] = zero_f();
  for (int d = 0; d < head_dim; ++d) {
    const F k = load_kv<TYPE>(keys, int64_t(d) * KV_BLOCK);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) s[i] = fma(k, set1(q[i * q_step + d]), s[i]);
  }
  for (int i = 0; i < N; ++i) store(scores + i * ATTENTION_SPLIT, s[i]);
}

// acc[i] += Σ p[i][t] × value[t] for first <= t < last, ascending; positions are relative to the split.
template <KvType TYPE, int N, int W>
inline void add_values(const AttendTask& task, const int32_t* blocks, const float* p, int first, int last, int d,
                       float* acc) {
  const int padded = padded_head_dim(task.head_dim);
  F a[N][W];
  for (int i = 0; i < N; ++i)
    for (int w = 0; w < W; ++w) a[i][w] = load(acc + i * padded + d + 16 * w);
  for (int t = first; t < last; ++t) {
    const uint8_t* block = task.values + blocks[t / KV_BLOCK] * task.block_stride;
    const int64_t at = int64_t(t % KV_BLOCK) * padded + d;
    F v[W];
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) v[w] = load_kv<TYPE>(block, at + 16 * w);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) a[i][w] = fma(set1(p[i * ATTENTION_SPLIT + t]), v[w], a[i][w]);
  }
  for (int i = 0; i < N; ++i)
    for (int w = 0; w < W; ++w) store(acc + i * padded + d + 16 * w, a[i][w]);
}

template <KvType TYPE, int N>
inline void add_values_wide(const AttendTask& task, const int32_t* blocks, const float* p, int first, int last,
                            float* acc) {
  if (first >= last) return;
  const int padded = padded_head_dim(task.head_dim);
  int d = 0;
  for (; d + 64 <= padded; d += 64) add_values<TYPE, N, 4>(task, blocks, p, first, last, d, acc);
  for (; d < padded; d += 16) add_values<TYPE, N, 1>(task, blocks, p, first, last, d, acc);
}

// Scores → probabilities relative to their own maximum; returns the maximum and the sum.
inline void softmax_split(float* scores, KeyRange range, float* maximum, float* total) {
  const int begin = range.first / 16 * 16;
  F best = set1(NEG_INF);
  for (int t = begin; t < range.last; t += 16) {
    const F s = keep_lanes(load(scores + t), range.first > t ? range.first - t : 0,
                           range.last - t < 16 ? range.last - t : 16, NEG_INF);
    best = max(s, best);
  }
  const float m = max_lane(best);
  F sums = zero_f();
  for (int t = begin; t < range.last; t += 16) {
    const F p = keep_lanes(exp(load(scores + t) - set1(m)), range.first > t ? range.first - t : 0,
                           range.last - t < 16 ? range.last - t : 16, 0.0f);
    store(scores + t, p);
    sums = sums + p;
  }
  *maximum = m;
  *total = sum(sums);
}

struct Running {
  float maximum, total;
};

// Adds a split's (maximum, total, values) to those of the splits before it.
inline void merge_split(Running& run, float maximum, float total, const float* split, int padded, float* acc) {
  if (run.total == 0.0f) {
    run = {maximum, total};
    std::memcpy(acc, split, size_t(padded) * 4);
    return;
  }
  const float m = maximum > run.maximum ? maximum : run.maximum;
  const float keep = exp1(run.maximum - m), take = exp1(maximum - m);
  run = {m, run.total * keep + total * take};
  for (int d = 0; d < padded; d += 16) store(acc + d, fma(load(split + d), set1(take), load(acc + d) * set1(keep)));
}

template <KvType TYPE>
inline void score_split(const AttendTask& task, const int32_t* blocks, const float* q, int count, KeyRange range,
                        float* scores) {
  const int padded = padded_head_dim(task.head_dim);
  for (int t = range.first / KV_BLOCK * KV_BLOCK; t < range.last; t += KV_BLOCK) {
    const uint8_t* keys = task.keys + blocks[t / KV_BLOCK] * task.block_stride;
    by_powers_of_two<QUERIES_AT_ONCE>(count, [&](auto size, int i) {
      score_block<TYPE, decltype(size)::value>(keys, q + i * padded, padded, task.head_dim,
                                               scores + i * ATTENTION_SPLIT + t);
    });
  }
}

// Σ p × value for `count` queries: the keys all of them see go together, what only some see goes one by one.
template <KvType TYPE>
inline void value_split(const AttendTask& task, const int32_t* blocks, const float* p, int count,
                        const KeyRange* ranges, float* acc) {
  const int padded = padded_head_dim(task.head_dim);
  int m = 0;
  while (m < count) {
    const int n = count - m >= 4 ? 4 : 1;
    KeyRange common = ranges[m];
    for (int i = 1; i < n; ++i) common = cut(common, ranges[m + i].first, ranges[m + i].last);
    if (common.first > common.last) common.last = common.first;
    auto alone = [&](int i, int first, int last) {
      add_values_wide<TYPE, 1>(task, blocks, p + i * ATTENTION_SPLIT, first, last, acc + i * padded);
    };
    for (int i = m; i < m + n; ++i) alone(i, ranges[i].first, cut(ranges[i], 0, common.first).last);
    if (n == 4)
      add_values_wide<TYPE, 4>(task, blocks, p + m * ATTENTION_SPLIT, common.first, common.last, acc + m * padded);
    else alone(m, common.first, common.last);
    for (int i = m; i < m + n; ++i) alone(i, cut(ranges[i], common.last, ATTENTION_SPLIT).first, ranges[i].last);
    m += n;
  }
}

template <KvType TYPE>
void attend_queries(const AttendTask& task, int first_query, int count) {
  const int padded = padded_head_dim(task.head_dim);
  float* q = task.scratch;
  float* acc = q + ATTEND_QUERIES * padded;
  float* split_acc = acc + ATTEND_QUERIES * padded;
  float* scores = split_acc + ATTEND_QUERIES * padded;
  KeyRange ranges[ATTEND_QUERIES], in_split[ATTEND_QUERIES];
  Running running[ATTEND_QUERIES];
  KeyRange all = keys_of(task, first_query);
  for (int i = 0; i < count; ++i) {
    const int token = (first_query + i) / task.group, head = (first_query + i) % task.group;
    const float* source = task.q + token * task.q_stride + int64_t(head) * task.head_dim;
    for (int d = 0; d < task.head_dim; ++d) q[i * padded + d] = source[d] * task.scale;
    ranges[i] = keys_of(task, first_query + i);
    running[i] = {NEG_INF, 0.0f};
    all = {ranges[i].first < all.first ? ranges[i].first : all.first,
           ranges[i].last > all.last ? ranges[i].last : all.last};
  }
  for (int start = all.first / ATTENTION_SPLIT * ATTENTION_SPLIT; start < all.last; start += ATTENTION_SPLIT) {
    const int32_t* blocks = task.block_table + start / KV_BLOCK;
    const KeyRange here = cut({all.first - start, all.last - start}, 0, ATTENTION_SPLIT);
    score_split<TYPE>(task, blocks, q, count, here, scores);
    float maximum[ATTEND_QUERIES], total[ATTEND_QUERIES];
    for (int i = 0; i < count; ++i) {
      in_split[i] = cut({ranges[i].first - start, ranges[i].last - start}, 0, ATTENTION_SPLIT);
      if (in_split[i].first >= in_split[i].last) {
        in_split[i] = {0, 0};
        continue;
      }
      softmax_split(scores + i * ATTENTION_SPLIT, in_split[i], &maximum[i], &total[i]);
    }
    std::memset(split_acc, 0, sizeof(float) * size_t(count) * padded);
    value_split<TYPE>(task, blocks, scores, count, in_split, split_acc);
    for (int i = 0; i < count; ++i)
      if (in_split[i].first < in_split[i].last)
        merge_split(running[i], maximum[i], total[i], split_acc + i * padded, padded, acc + i * padded);
  }
  for (int i = 0; i < count; ++i) {
    const int token = (first_query + i) / task.group, head = (first_query + i) % task.group;
    float* target = task.out + token * task.out_stride + int64_t(head) * task.head_dim;
    for (int d = 0; d < task.head_dim; ++d) target[d] = acc[i * padded + d] / running[i].total;
  }
}

template <KvType TYPE>
void attend_all(const AttendTask& task) {
  const int queries = task.num_tokens * task.group;
  for (int i = 0; i < queries; i += ATTEND_QUERIES)
    attend_queries<TYPE>(task, i, queries - i < ATTEND_QUERIES ? queries - i : ATTEND_QUERIES);
}

void attend(const AttendTask& task) {
  switch (task.type) {
    case KvType::F16: return attend_all<KvType::F16>(task);
    case KvType::BF16: return attend_all<KvType::BF16>(task);
    default: return attend_all<KvType::F32>(task);
  }
}

template <Format... FMT>
Kernels make_kernels(const char* name) {
  Kernels k{};
  k.name = name;
  ((k.f32_tile[int(FMT)] = f32_tile<FMT>), ...);
  auto set_q8 = [&](auto format) {
    constexpr Format f = decltype(format)::value;
    if constexpr (!is_float(f)) k.q8_tile[int(f)] = q8_tile<f>;
  };
  (set_q8(std::integral_constant<Format, FMT>()), ...);
  k.quantize_row = quantize_row;
  k.bf16_row = bf16_row;
  k.rms_norm = rms_norm;
  k.layer_norm = layer_norm;
  k.rope = rope;
  k.store_key = store_key;
  k.store_value = store_value;
  k.attend = attend;
  k.add = add;
  k.activate = activate;
  k.gated = gated;
  k.row_max = row_max;
  k.sum_exp = sum_exp;
  return k;
}

inline const Kernels* all_formats(const char* name) {
  static const Kernels table =
      make_kernels<Format::F32, Format::F16, Format::BF16, Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1,
                   Format::Q8_0, Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K>(name);
  return &table;
}

}  // namespace
}  // namespace roseinfer
