// Attention over paged keys and values, ATTEND_QUERIES queries at a time.
//
// The keys are cut at absolute positions into splits of ATTENTION_SPLIT. Each split has a softmax of its own, in
// powers of two, and the splits are merged in order, so a result depends neither on how a prompt was cut into chunks
// nor on whether the splits were computed one after the other or by several threads.
//
// bf16 and int8 keys and values meet queries and weights of the same precision; float16 and float32 ones are computed
// in float32.
namespace roseinfer {
namespace {

constexpr float LOG2_E = 1.44269504088896341f;

// ---- the types of keys and values ---------------------------------------------------------------------------

// Dimensions of one key in a 4-byte word: what one step of a score takes from a query.
template <KvType TYPE>
constexpr int DIMS_PER_WORD = TYPE == KvType::BF16 ? 2
                              : TYPE == KvType::Q8 ? 4
                                                   : 1;

// Keys whose values lie side by side, and whose weights share a word.
template <KvType TYPE>
constexpr int KEYS_PER_WORD = TYPE == KvType::BF16 || TYPE == KvType::Q8 ? 2 : 1;

template <KvType TYPE>
constexpr int num_words(int head_dim) {
  return padded_head_dim(head_dim) / DIMS_PER_WORD<TYPE>;
}

// What int8 words mean: float = scale × (value); the sum undoes the keys' + 128.
struct WordScale {
  float scale = 1.0f;
  int32_t sum = 0;
};

// `x` × factor in words, zero behind the last dimension.
template <KvType TYPE>
inline WordScale to_words(const float* x, int head_dim, float factor, uint32_t* words) {
  const int padded = padded_head_dim(head_dim);
  if constexpr (TYPE == KvType::Q8) {
    F best = zero_f(), poison = zero_f();
    for (int d = 0; d < padded; d += 16) {
      const F v = load_part(x + d, head_dim - d) * set1(factor);
      best = max(abs(v), best);
      poison = poison + v * zero_f();
    }
    const float amax = max_lane(best);
    const auto [scale, inverse] = int8_scale(amax, sum(poison) == 0.0f);
    WordScale result{scale, 0};
    for (int d = 0; d < padded; d += 16)
      result.sum += store_scaled((int8_t*)words + d, load_part(x + d, head_dim - d) * set1(factor), inverse);
    return result;
  }
  for (int d = 0; d < padded; d += 16) {
    const F v = load_part(x + d, head_dim - d) * set1(factor);
    if constexpr (TYPE == KvType::BF16) store_bfloat((uint16_t*)words + d, v);
    else store((float*)words + d, v);
  }
  return {};
}

inline float* scales_behind(uint8_t* part, int head_dim) {
  return (float*)(part + padded_head_dim(head_dim) * KV_BLOCK);
}

template <KvType TYPE>
void store_key_as(const float* x, int head_dim, uint8_t* keys, int slot) {
  uint32_t words[MAX_HEAD_DIM] = {};
  const WordScale meaning = to_words<TYPE>(x, head_dim, 1.0f, words);
  for (int i = 0; i < num_words<TYPE>(head_dim); ++i) {
    if constexpr (TYPE == KvType::F16) ((uint16_t*)keys)[i * KV_BLOCK + slot] = float_to_half(bits_to_float(words[i]));
    else ((uint32_t*)keys)[i * KV_BLOCK + slot] = TYPE == KvType::Q8 ? words[i] ^ 0x80808080u : words[i];
  }
  if constexpr (TYPE == KvType::Q8) scales_behind(keys, head_dim)[slot] = meaning.scale;
}

// Elements of type T, KEYS keys side by side.
template <typename T, int KEYS>
inline void store_elements(const T* x, int padded, uint8_t* values, int slot, bool is_last) {
  T* target = (T*)values + slot / KEYS * KEYS * padded + slot % KEYS;
  for (int d = 0; d < padded; ++d) target[d * KEYS] = x[d];
  if (KEYS == 2 && is_last && slot % 2 == 0)
    for (int d = 0; d < padded; ++d) target[d * KEYS + 1] = 0;
}

template <KvType TYPE>
void store_value_as(const float* x, int head_dim, uint8_t* values, int slot, bool is_last) {
  const int padded = padded_head_dim(head_dim);
  uint32_t words[MAX_HEAD_DIM] = {};
  const WordScale meaning = to_words<TYPE>(x, head_dim, 1.0f, words);
  if constexpr (TYPE == KvType::F32) store_elements<uint32_t, 1>(words, padded, values, slot, is_last);
  if constexpr (TYPE == KvType::BF16) store_elements<uint16_t, 2>((uint16_t*)words, padded, values, slot, is_last);
  if constexpr (TYPE == KvType::F16)
    for (int d = 0; d < padded; d += 16) store_half((uint16_t*)values + slot * padded + d, load((float*)words + d));
  if constexpr (TYPE == KvType::Q8) {
    store_elements<uint8_t, 2>((uint8_t*)words, padded, values, slot, is_last);
    scales_behind(values, head_dim)[slot] = meaning.scale;
  }
}

// Calls body(std::integral_constant<KvType, type>).
template <typename Body>
inline void by_kv_type(KvType type, Body body) {
  switch (type) {
    case KvType::F16: return body(std::integral_constant<KvType, KvType::F16>());
    case KvType::BF16: return body(std::integral_constant<KvType, KvType::BF16>());
    case KvType::F32: return body(std::integral_constant<KvType, KvType::F32>());
    case KvType::Q8: return body(std::integral_constant<KvType, KvType::Q8>());
  }
}

void store_key(const float* x, int head_dim, KvType type, uint8_t* keys, int slot) {
  by_kv_type(type, [&](auto t) { store_key_as<decltype(t)::value>(x, head_dim, keys, slot); });
}

void store_value(const float* x, int head_dim, KvType type, uint8_t* values, int slot, bool is_last) {
  by_kv_type(type, [&](auto t) { store_value_as<decltype(t)::value>(x, head_dim, values, slot, is_last); });
}

// ---- scores -------------------------------------------------------------------------------------------------

// The queries that are computed together: step by step the words of all of them.
struct Queries {
  int count;
  const uint32_t* words;  // [num_words][ATTEND_QUERIES]
  WordScale scales[ATTEND_QUERIES];
};

template <KvType TYPE>
using Score = std::conditional_t<TYPE == KvType::Q8, I, F>;

template <KvType TYPE>
inline Score<TYPE> no_score(const WordScale& scale) {
  if constexpr (TYPE == KvType::Q8) return set1_i(HAS_SIGNED_DOT ? 0 : -128 * scale.sum);
  else return zero_f();
}

template <KvType TYPE>
inline auto load_keys(const uint8_t* keys, int word) {
  if constexpr (TYPE == KvType::F32) return load((const float*)keys + KV_BLOCK * word);
  else if constexpr (TYPE == KvType::F16) return load_half((const uint16_t*)keys + KV_BLOCK * word);
  else if constexpr (TYPE == KvType::BF16) return load_pairs(keys + 64 * word);
  else return load_q(keys + 64 * word);
}

inline F add_score(F sum, F keys, const uint32_t* word) { return fma(keys, set1(*(const float*)word), sum); }
inline F add_score(F sum, P keys, const uint32_t* word) { return dot2(sum, keys, *word); }
inline I add_score(I sum, Q keys, const uint32_t* word) { return dot4<true>(sum, keys, (const int8_t*)word); }

inline F finish_score(F sum, const uint8_t*, int, const WordScale&) { return sum; }
inline F finish_score(I sum, const uint8_t* keys, int head_dim, const WordScale& scale) {
  return to_float(sum) * (load((const float*)(keys + padded_head_dim(head_dim) * KV_BLOCK)) * set1(scale.scale));
}

// scores[i][16 b ..] of B blocks of keys for N queries from `first` on, each a fixed ascending sum over the
// dimensions. Few queries take several blocks at once, or they would wait for each other's sums.
template <KvType TYPE, int N, int B>
inline void score_blocks(const uint8_t* const* keys, const Queries& queries, int first, int head_dim, float* scores) {
  Score<TYPE> sums[B][N];
  for (int b = 0; b < B; ++b)
    for (int i = 0; i < N; ++i) sums[b][i] = no_score<TYPE>(queries.scales[first + i]);
  const uint32_t* words = queries.words + first;
  for (int d = 0; d < num_words<TYPE>(head_dim); ++d, words += ATTEND_QUERIES) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      const auto k = load_keys<TYPE>(keys[b], d);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) sums[b][i] = add_score(sums[b][i], k, words + i);
    }
  }
  for (int b = 0; b < B; ++b)
    for (int i = 0; i < N; ++i)
      store(scores + i * ATTENTION_SPLIT + KV_BLOCK * b,
            finish_score(sums[b][i], keys[b], head_dim, queries.scales[first + i]));
}

// ---- softmax ------------------------------------------------------------------------------------------------

struct KeyRange {
  int first, last;  // positions first <= p < last
  bool is_empty() const { return first >= last; }
};

inline KeyRange keys_of(const AttendTask& task, int query) {
  const int position = task.first_position + query / task.group;
  const int first = task.window > 0 && position + 1 > task.window ? position + 1 - task.window : 0;
  return {first, position + 1};
}

// The part of a range that lies in the split which begins at `start`, relative to it.
inline KeyRange in_split(KeyRange range, int start) {
  const int first = range.first - start, last = range.last - start;
  return {first > 0 ? first : 0, last < ATTENTION_SPLIT ? last : ATTENTION_SPLIT};
}

struct Softmax {
  float maximum, total;
};

inline F keep_range(F a, KeyRange range, int t, float other) {
  if (range.first <= t && range.last >= t + 16) return a;
  const int first = range.first > t ? range.first - t : 0, last = range.last < t + 16 ? range.last - t : 16;
  return first < last ? keep_lanes(a, first, last, other) : set1(other);
}

// Scores → weights 2^(score - maximum), in words and in place, zero in the blocks' keys outside of `range`.
// int8 values have a scale per key, which goes into its weight.
template <KvType TYPE>
inline Softmax softmax_split(float* scores, KeyRange range, KeyRange blocks, const float* const* value_scales) {
  F best = set1(NEG_INF), sums = zero_f();
  for (int t = blocks.first; t < blocks.last; t += 16)
    best = max(keep_range(load(scores + t), range, t, NEG_INF), best);
  const float maximum = max_lane(best);
  for (int t = blocks.first; t < blocks.last; t += 16) {
    F p = keep_range(exp2(load(scores + t) - set1(maximum)), range, t, 0.0f);
    sums = sums + p;
    if constexpr (TYPE == KvType::Q8) p = keep_range(p * load(value_scales[t / 16]), range, t, 0.0f);
    if constexpr (KEYS_PER_WORD<TYPE> == 2) store_bfloat((uint16_t*)scores + t, p);
    else store(scores + t, p);
  }
  return {maximum, sum(sums)};
}

// ---- values -------------------------------------------------------------------------------------------------

// sums[i][16 W] += Σ weight[i][t] × value[t] over the keys of `range`, ascending.
template <KvType TYPE, int N, int W>
inline void add_values(const AttendTask& task, const int32_t* table, const uint32_t* weights, KeyRange range, int d,
                       float* sums) {
  constexpr int keys = KEYS_PER_WORD<TYPE>;
  const int padded = padded_head_dim(task.head_dim);
  const int64_t stride = partial_floats(task.head_dim);
  F a[N][W];
  for (int i = 0; i < N; ++i)
    for (int w = 0; w < W; ++w) a[i][w] = zero_f();
  for (int step = range.first / keys; step < (range.last + keys - 1) / keys; ++step) {
    const uint8_t* block = task.values + table[step * keys / KV_BLOCK] * task.block_stride;
    const int64_t at = int64_t(step % (KV_BLOCK / keys)) * padded + d;
    if constexpr (keys == 2) {
      P v[W];
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w)
        v[w] = TYPE == KvType::BF16 ? load_pairs(block + 4 * (at + 16 * w))
                                    : pairs_of_i8((const int8_t*)block + 2 * (at + 16 * w));
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) a[i][w] = dot2(a[i][w], v[w], weights[i * ATTENTION_SPLIT + step]);
    } else {
      F v[W];
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w)
        v[w] = TYPE == KvType::F16 ? load_half((const uint16_t*)block + at + 16 * w)
                                   : load((const float*)block + at + 16 * w);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w)
          a[i][w] = fma(set1(bits_to_float(weights[i * ATTENTION_SPLIT + step])), v[w], a[i][w]);
    }
  }
  for (int i = 0; i < N; ++i)
    for (int w = 0; w < W; ++w) store(sums + i * stride + d + 16 * w, a[i][w]);
}

// N queries × as many dimensions as leave the accumulators in registers.
template <KvType TYPE, int N>
inline void add_values_wide(const AttendTask& task, const int32_t* table, const uint32_t* weights, KeyRange range,
                            float* sums) {
  constexpr int wide = N * 4 <= REGISTER_ROWS ? 4 : N * 2 <= REGISTER_ROWS ? 2 : 1;
  const int padded = padded_head_dim(task.head_dim);
  int d = 0;
  for (; d + 16 * wide <= padded; d += 16 * wide) add_values<TYPE, N, wide>(task, table, weights, range, d, sums);
  for (; d < padded; d += 16) add_values<TYPE, N, 1>(task, table, weights, range, d, sums);
}

// ---- one split, all splits ----------------------------------------------------------------------------------

constexpr int QUERIES_AT_ONCE = REGISTER_ROWS < ATTEND_QUERIES ? REGISTER_ROWS : ATTEND_QUERIES;

// A partial result: values[padded], then the maximum and the total; a total of zero says that no key was seen.
inline float* softmax_of(float* partial, int head_dim) { return partial + padded_head_dim(head_dim); }

struct Scratch {
  uint32_t* words;
  float *scores, *partial, *running;
  Scratch(const AttendTask& task) {
    const int64_t partials = ATTEND_QUERIES * partial_floats(task.head_dim);
    words = (uint32_t*)task.scratch;
    scores = task.scratch + ATTEND_QUERIES * padded_head_dim(task.head_dim);
    partial = scores + ATTEND_QUERIES * ATTENTION_SPLIT;
    running = partial + partials;
  }
};

template <KvType TYPE>
Queries prepare_queries(const AttendTask& task, int first, int count, uint32_t* words) {
  Queries queries{count, words, {}};
  uint32_t row[MAX_HEAD_DIM] = {};
  for (int i = 0; i < count; ++i) {
    const int token = (first + i) / task.group, head = (first + i) % task.group;
    const float* q = task.q + token * task.q_stride + int64_t(head) * task.head_dim;
    queries.scales[i] = to_words<TYPE>(q, task.head_dim, task.scale * LOG2_E, row);
    for (int d = 0; d < num_words<TYPE>(task.head_dim); ++d) words[d * ATTEND_QUERIES + i] = row[d];
  }
  return queries;
}

// partials[i] of the queries from `first` on over the split that begins at position `start`.
template <KvType TYPE>
void attend_one_split(const AttendTask& task, const Queries& queries, int first, int start, float* scores,
                      float* partials) {
  KeyRange ranges[ATTEND_QUERIES], all{ATTENTION_SPLIT, 0};
  for (int i = 0; i < queries.count; ++i) {
    ranges[i] = in_split(keys_of(task, first + i), start);
    if (ranges[i].is_empty()) continue;
    all = {ranges[i].first < all.first ? ranges[i].first : all.first,
           ranges[i].last > all.last ? ranges[i].last : all.last};
  }
  const int64_t stride = partial_floats(task.head_dim);
  for (int i = 0; i < queries.count; ++i) softmax_of(partials + i * stride, task.head_dim)[1] = 0.0f;
  if (all.is_empty()) return;
  const KeyRange blocks{all.first / KV_BLOCK * KV_BLOCK, (all.last + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK};
  const int32_t* table = task.block_table + start / KV_BLOCK;
  const uint8_t* keys[ATTENTION_SPLIT / KV_BLOCK];
  const float* value_scales[ATTENTION_SPLIT / KV_BLOCK];
  for (int b = blocks.first / KV_BLOCK; b < blocks.last / KV_BLOCK; ++b) {
    keys[b] = task.keys + table[b] * task.block_stride;
    const uint8_t* values = task.values + table[b] * task.block_stride;
    value_scales[b] = (const float*)(values + padded_head_dim(task.head_dim) * KV_BLOCK);
    // One token's keys and values are read once, from wherever their blocks lie.
    if (task.num_tokens == 1) prefetch(values, kv_part_bytes(TYPE, task.head_dim));
  }
  in_register_rows<QUERIES_AT_ONCE>(queries.count, [&](auto size, int i) {
    constexpr int N = decltype(size)::value, B = REGISTER_ROWS / N < 4 ? REGISTER_ROWS / N : 4;
    int b = blocks.first / KV_BLOCK;
    for (; b + B <= blocks.last / KV_BLOCK; b += B)
      score_blocks<TYPE, N, B>(keys + b, queries, i, task.head_dim, scores + i * ATTENTION_SPLIT + KV_BLOCK * b);
    for (; b < blocks.last / KV_BLOCK; ++b)
      score_blocks<TYPE, N, 1>(keys + b, queries, i, task.head_dim, scores + i * ATTENTION_SPLIT + KV_BLOCK * b);
  });
  for (int i = 0; i < queries.count; ++i) {
    const KeyRange range = ranges[i].is_empty() ? KeyRange{0, 0} : ranges[i];
    const Softmax softmax = softmax_split<TYPE>(scores + i * ATTENTION_SPLIT, range, blocks, value_scales);
    softmax_of(partials + i * stride, task.head_dim)[0] = softmax.maximum;
    if (!range.is_empty()) softmax_of(partials + i * stride, task.head_dim)[1] = softmax.total;
  }
  in_register_rows<QUERIES_AT_ONCE>(queries.count, [&](auto size, int i) {
    add_values_wide<TYPE, decltype(size)::value>(task, table, (const uint32_t*)scores + i * ATTENTION_SPLIT, all,
                                                 partials + i * stride);
  });
}

// Adds a split's partial result to that of the splits before it.
inline void merge_partial(float* running, const float* partial, int head_dim) {
  const int padded = padded_head_dim(head_dim);
  float* run = softmax_of(running, head_dim);
  const float maximum = partial[padded], total = partial[padded + 1];
  if (total == 0.0f) return;
  if (run[1] == 0.0f) {
    std::memcpy(running, partial, size_t(padded + 2) * 4);
    return;
  }
  const float m = maximum > run[0] ? maximum : run[0];
  const float keep = first_lane(exp2(set1(run[0] - m))), take = first_lane(exp2(set1(maximum - m)));
  run[0] = m;
  run[1] = run[1] * keep + total * take;
  for (int d = 0; d < padded; d += 16)
    store(running + d, fma(load(partial + d), set1(take), load(running + d) * set1(keep)));
}

inline void write_query(const AttendTask& task, int query, const float* running) {
  const F total = set1(running[padded_head_dim(task.head_dim) + 1]);
  float* target = task.out + int64_t(query) * task.head_dim;
  for (int d = 0; d < task.head_dim; d += 16) store_part(target + d, load(running + d) / total, task.head_dim - d);
}

// Calls body(first, count) for all queries of a task, ATTEND_QUERIES at once.
template <typename Body>
inline void by_queries(const AttendTask& task, Body body) {
  const int queries = task.num_tokens * task.group;
  for (int i = 0; i < queries; i += ATTEND_QUERIES)
    body(i, queries - i < ATTEND_QUERIES ? queries - i : ATTEND_QUERIES);
}

template <KvType TYPE>
void attend_as(const AttendTask& task) {
  const Scratch scratch(task);
  const int64_t stride = partial_floats(task.head_dim);
  by_queries(task, [&](int first, int count) {
    const Queries queries = prepare_queries<TYPE>(task, first, count, scratch.words);
    for (int i = 0; i < count; ++i) softmax_of(scratch.running + i * stride, task.head_dim)[1] = 0.0f;
    const int begin = keys_of(task, first).first, end = keys_of(task, first + count - 1).last;
    for (int start = begin / ATTENTION_SPLIT * ATTENTION_SPLIT; start < end; start += ATTENTION_SPLIT) {
      attend_one_split<TYPE>(task, queries, first, start, scratch.scores, scratch.partial);
      for (int i = 0; i < count; ++i)
        merge_partial(scratch.running + i * stride, scratch.partial + i * stride, task.head_dim);
    }
    for (int i = 0; i < count; ++i) write_query(task, first + i, scratch.running + i * stride);
  });
}

void attend(const AttendTask& task) {
  by_kv_type(task.type, [&](auto type) { attend_as<decltype(type)::value>(task); });
}

template <KvType TYPE>
void attend_split_as(const AttendTask& task, int split, float* partials) {
  const Scratch scratch(task);
  const int64_t stride = partial_floats(task.head_dim);
  by_queries(task, [&](int first, int count) {
    const Queries queries = prepare_queries<TYPE>(task, first, count, scratch.words);
    attend_one_split<TYPE>(task, queries, first, split * ATTENTION_SPLIT, scratch.scores, scratch.partial);
    std::memcpy(partials + first * stride, scratch.partial, size_t(count * stride) * 4);
  });
}

void attend_split(const AttendTask& task, int split, float* partials) {
  by_kv_type(task.type, [&](auto type) { attend_split_as<decltype(type)::value>(task, split, partials); });
}

void merge_splits(const AttendTask& task, int num_splits, const float* partials) {
  const int64_t stride = partial_floats(task.head_dim);
  const int queries = task.num_tokens * task.group;
  for (int i = 0; i < queries; ++i) {
    float* running = task.scratch;
    softmax_of(running, task.head_dim)[1] = 0.0f;
    for (int s = 0; s < num_splits; ++s)
      merge_partial(running, partials + (int64_t(s) * queries + i) * stride, task.head_dim);
    write_query(task, i, running);
  }
}

}  // namespace
}  // namespace roseinfer
