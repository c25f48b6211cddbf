// Work on single rows: into panels, norms, rope, sums.
namespace roseinfer {
namespace {

void to_f32_panel(const float* x, int64_t n, void* groups, int m) {
  F32Group* group = (F32Group*)groups;
  for (int64_t k = 0; k < n; k += GROUP, ++group) {
    store(group->values[m], load_part(x + k, n - k));
    store(group->values[m] + 16, n - k > 16 ? load_part(x + k + 16, n - k - 16) : zero_f());
  }
}

void to_bf16_panel(const float* x, int64_t n, void* groups, int m) {
  BF16Group* group = (BF16Group*)groups;
  for (int64_t k = 0; k < n; k += GROUP, ++group) {
    store_bfloat(group->values[m], load_part(x + k, n - k));
    store_bfloat(group->values[m] + 16, n - k > 16 ? load_part(x + k + 16, n - k - 16) : zero_f());
  }
}

struct Quantised {
  float scale, inverse;
};

// Of values up to `amax`. A NaN or an infinity makes the scale NaN, which int8 values could not carry on.
inline Quantised int8_scale(float amax, bool is_finite) {
  return {is_finite ? amax / 127.0f : std::numeric_limits<float>::quiet_NaN(), amax > 0.0f ? 127.0f / amax : 0.0f};
}

inline int32_t store_scaled(int8_t* target, F x, float inverse) {
  const F limit = set1(127.0f);
  return store_i8(target, max(min(x * set1(inverse), limit), zero_f() - limit));
}

void to_q8_panel(const float* x, int64_t n, void* groups, int m) {
  Q8Group* group = (Q8Group*)groups;
  for (int64_t k = 0; k < n; k += GROUP, ++group) {
    const F a = load(x + k), b = load(x + k + 16);
    const float amax = max_lane(max(abs(a), abs(b)));
    const bool is_finite = amax <= std::numeric_limits<float>::max() && !has_nan(a, b);
    const auto [scale, inverse] = int8_scale(amax, is_finite);
    const int32_t sum_a = store_scaled(group->values[m], a, inverse);
    const int32_t sum_b = store_scaled(group->values[m] + 16, b, inverse);
    group->scales[m] = scale;
    group->scaled_sums[m] = scale * float(sum_a + sum_b);
    group->offsets[m] = -128 * (sum_a + sum_b);
    group->half_scaled_sums[0][m] = scale * float(sum_a);
    group->half_scaled_sums[1][m] = scale * float(sum_b);
    group->half_offsets[0][m] = -128 * sum_a;
    group->half_offsets[1][m] = -128 * sum_b;
  }
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

void keep_allowed(const float* x, int64_t n, const uint32_t* mask, float* out) {
  for (int64_t i = 0; i < n; i += 16)
    store_part(out + i, keep_bits(load_part(x + i, n - i), mask[i / 32] >> (i % 32), NEG_INF), n - i);
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

// Philox4x32-10 (Salmon et al., 2011) of sixteen counters that follow each other.
inline void philox_16(const NoiseBlock& block, I c[4]) {
  uint32_t first[16], k0 = block.key[0], k1 = block.key[1];
  for (int i = 0; i < 16; ++i) first[i] = block.counter[0] + uint32_t(i);
  c[0] = load_i(first);
  for (int j = 1; j < 4; ++j) c[j] = set1_i(int32_t(block.counter[j]));
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    I low0, high0, low2, high2;
    multiply_wide(c[0], 0xD2511F53u, &low0, &high0);
    multiply_wide(c[2], 0xCD9E8D57u, &low2, &high2);
    c[0] = high2 ^ c[1] ^ set1_i(int32_t(k0));
    c[2] = high0 ^ c[3] ^ set1_i(int32_t(k1));
    c[1] = low2;
    c[3] = low0;
  }
}

// Gumbel noise -log(-log(1 - u)) of word u × 2^32 is below (leading zeros + 1) × log 2, and below 23 for any word: so
// only small words can lift a token by much, and hardly any block of unlikely tokens has one.
bool noise_reaches(const float* x, int64_t count, double score, const NoiseBlock& block, uint32_t* words) {
  F best = set1(NEG_INF);
  for (int64_t i = 0; i < count; i += 16) best = max(load_part(x + i, count - i, NEG_INF), best);
  const double missing = score - double(max_lane(best));
  if (!(missing <= 23.0)) return false;  // a NaN where nothing is allowed, and nothing was before
  I c[4];
  philox_16(block, c);
  const int zeros = missing > 0.0 ? std::min(int(missing * 1.4426950408889634) - 1, 31) : 0;  // one less for rounding
  const uint32_t limit = zeros > 0 ? 0xffffffffu >> zeros : 0xffffffffu;
  bool found = false;
  for (int j = 0; j < 4; ++j) found |= any_at_most(c[j], limit);
  if (!found) return false;
  uint32_t lanes[4][16];
  for (int j = 0; j < 4; ++j) store_i(lanes[j], c[j]);
  for (int i = 0; i < NOISE_TOKENS; ++i) words[i] = lanes[i % 4][i / 4];  // token 4 i + j has word j of counter i
  return true;
}

}  // namespace
}  // namespace roseinfer
