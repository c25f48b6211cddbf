#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace roseinfer {

void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

namespace {

constexpr float NEG_INF = -std::numeric_limits<float>::infinity();

// Highest first, the lower id on a tie.
struct Better {
  const float* x;
  bool operator()(int32_t a, int32_t b) const { return x[a] != x[b] ? x[a] > x[b] : a < b; }
};

// The random word of every token at one (seed, choice, position).
class Noise {
 public:
  explicit Noise(const SampleParams& p)
      : key_{uint32_t(p.seed), uint32_t(p.seed >> 32)},
        counter_{0, uint32_t(p.choice), uint32_t(p.position), uint32_t(uint64_t(p.position) >> 32)} {}

  // Key and counter of the NOISE_TOKENS words from a multiple of that on.
  NoiseBlock block(int64_t first_token) const {
    return {{key_[0], key_[1]}, {uint32_t(first_token / 4), counter_[1], counter_[2], counter_[3]}};
  }

  uint32_t word(int32_t token) {
    const uint32_t index = uint32_t(token) >> 2;
    if (!filled_ || counter_[0] != index) {
      counter_[0] = index;
      philox(counter_, key_, words_);
      filled_ = true;
    }
    return words_[token & 3];
  }

 private:
  uint32_t key_[2], counter_[4], words_[4];
  bool filled_ = false;
};

double gumbel(uint32_t word) { return -std::log(-std::log1p(-(double(word) + 0.5) * 0x1p-32)); }

// Gumbel noise of `word` is below this: its logarithm is bounded by the leading zeros.
double gumbel_bound(uint32_t word) { return (std::countl_zero(word) + 1) * 0.6931471805599454; }

struct Best {
  double score = -std::numeric_limits<double>::infinity();
  int32_t id = -1;

  void offer(float x, int32_t token, uint32_t word) {
    if (double(x) + gumbel_bound(word) < score) return;
    const double s = double(x) + gumbel(word);
    if (s > score || (s == score && token < id)) *this = {s, token};
  }
};

constexpr int64_t MAX_HEAP_K = 1024;  // up to here a heap of the best is faster than a partition of the whole row

// The k best tokens, best first.
void keep_best(const float* x, int64_t n, int64_t k, std::vector<int32_t>& kept) {
  const Better better{x};
  if (k > MAX_HEAP_K) {
    kept.resize(size_t(n));
    for (int64_t i = 0; i < n; ++i) kept[size_t(i)] = int32_t(i);
    std::nth_element(kept.begin(), kept.begin() + k - 1, kept.end(), better);
    kept.resize(size_t(k));
    std::sort(kept.begin(), kept.end(), better);
    return;
  }
  kept.resize(size_t(k));
  for (int64_t i = 0; i < k; ++i) kept[size_t(i)] = int32_t(i);
  std::make_heap(kept.begin(), kept.end(), better);  // the worst of them in front
  float worst = x[kept.front()];
  for (int64_t i = k; i < n; ++i) {
    if (!(x[i] > worst)) continue;  // on a tie the lower id stays
    std::pop_heap(kept.begin(), kept.end(), better);
    kept.back() = int32_t(i);
    std::push_heap(kept.begin(), kept.end(), better);
    worst = x[kept.front()];
  }
  std::sort_heap(kept.begin(), kept.end(), better);
}

// The tokens that top_p can keep, in no order: those below (1 - top_p) / n of the total come to less than 1 - top_p of
// it together, so the others already hold top_p. Half of that allows for rounding.
void keep_probable(const float* x, int64_t n, float highest, double total, float top_p, std::vector<int32_t>& kept) {
  const double share = 0.5 * (1.0 - double(top_p)) * total / double(n);
  const float least = share > 0.0 ? float(double(highest) + std::log(share)) : NEG_INF;
  kept.clear();
  for (int64_t i = 0; i < n; ++i)
    if (!(x[i] < least)) kept.push_back(int32_t(i));
}

// Of the kept tokens the likeliest that hold top_p of the total together, the one that reaches it included.
void keep_nucleus(const float* x, float highest, double wanted, bool is_sorted, std::vector<int32_t>& kept) {
  const auto worse = [better = Better{x}](int32_t a, int32_t b) { return better(b, a); };
  // A heap gives the few that matter in order without sorting the rest.
  if (!is_sorted) std::make_heap(kept.begin(), kept.end(), worse);
  double before = 0.0;
  size_t count = 0;
  while (count < kept.size() && before < wanted) {
    if (!is_sorted) std::pop_heap(kept.begin(), kept.end() - int64_t(count), worse);
    const int32_t id = is_sorted ? kept[count] : kept[kept.size() - 1 - count];
    before += std::exp(double(x[id]) - highest);
    ++count;
  }
  if (!is_sorted) std::reverse(kept.begin(), kept.end());
  kept.resize(std::max<size_t>(count, 1));
}

// What the filters leave.
void filter(const Kernels& kernels, const float* x, int64_t n, float highest, const SampleParams& p,
            std::vector<int32_t>& kept) {
  const bool by_k = p.top_k > 0 && p.top_k < n, by_p = p.top_p < 1.0f;
  double total = 0.0;
  if (by_k) {
    keep_best(x, n, p.top_k, kept);
    if (by_p)
      for (int32_t id : kept) total += std::exp(double(x[id]) - highest);
  } else {
    if (by_p) total = kernels.sum_exp(x, n, highest, 1.0f);
    keep_probable(x, n, highest, total, by_p ? p.top_p : 1.0f, kept);
  }
  if (by_p) keep_nucleus(x, highest, double(p.top_p) * total, by_k, kept);
  if (p.min_p > 0.0f)
    std::erase_if(kept, [&](int32_t id) { return std::exp(double(x[id]) - highest) < double(p.min_p); });
}

// The token whose x + noise is highest, of all.
int32_t choose_of_all(const Kernels& kernels, const float* x, int64_t n, const SampleParams& p) {
  Noise noise(p);
  Best best;
  uint32_t words[NOISE_TOKENS];
  for (int64_t first = 0; first < n; first += NOISE_TOKENS) {
    const int64_t count = std::min<int64_t>(n - first, NOISE_TOKENS);
    if (!kernels.noise_reaches(x + first, count, best.score, noise.block(first), words)) continue;
    for (int64_t i = 0; i < count; ++i)
      if (x[first + i] > NEG_INF) best.offer(x[first + i], int32_t(first + i), words[i]);
  }
  return best.id;
}

int32_t choose(const Kernels& kernels, const float* logits, int64_t n, float highest, const SampleParams& p,
               SamplerScratch& scratch) {
  // So small a temperature that logits overflow chooses the highest anyway.
  if (p.temperature == 0.0f || !std::isfinite(highest / p.temperature))
    return int32_t(std::find(logits, logits + n, highest) - logits);
  scratch.scaled.resize(size_t(n));
  float* x = scratch.scaled.data();
  for (int64_t i = 0; i < n; ++i) x[i] = logits[i] / p.temperature;
  if (p.top_k <= 0 && p.top_p >= 1.0f && p.min_p <= 0.0f) return choose_of_all(kernels, x, n, p);
  Noise noise(p);
  Best best;
  filter(kernels, x, n, highest / p.temperature, p, scratch.candidates);
  for (int32_t id : scratch.candidates)
    if (x[id] > NEG_INF) best.offer(x[id], id, noise.word(id));
  return best.id;
}

void add_logprobs(const Kernels& kernels, const float* logits, int64_t n, float highest, int count,
                  SamplerScratch& scratch, Sample& sample) {
  const double normaliser = double(highest) + std::log(double(kernels.sum_exp(logits, n, highest, 1.0f)));
  sample.logprob = float(double(logits[sample.token_id]) - normaliser);
  if (count == 0) return;
  keep_best(logits, n, std::min<int64_t>(count, n), scratch.candidates);
  for (int32_t id : scratch.candidates) {
    sample.top_ids.push_back(id);
    sample.top_logprobs.push_back(float(double(logits[id]) - normaliser));
  }
}

// Repetition, presence and frequency penalties. `counts` are all 0 before and after.
void penalise(const RowEdits& e, std::vector<int32_t>& counts, float* x) {
  for (int64_t i = 0; i < e.history_len; ++i) {  // 1 + how often a token is in the output
    int32_t& count = counts[size_t(e.history[i])];
    count = std::max(count, 1) + (i >= e.output_start);
  }
  for (int64_t i = 0; i < e.history_len; ++i) {
    int32_t& count = counts[size_t(e.history[i])];
    if (count == 0) continue;
    float& logit = x[e.history[i]];
    logit = logit > 0.0f ? logit / e.repetition : logit * e.repetition;
    if (count > 1) logit = logit - e.presence - e.frequency * float(count - 1);
    count = 0;
  }
}

// The row as `e` wants it, in scratch. What the mask forbids is so first, together with the copy: the other edits leave
// -inf what it is.
const float* edit(const Kernels& kernels, const float* logits, int64_t n, const RowEdits& e, SamplerScratch& scratch) {
  scratch.edited.resize(size_t(n));
  scratch.counts.resize(size_t(n));
  float* x = scratch.edited.data();
  const int64_t covered = e.mask ? std::min(n, e.mask_tokens) : n;
  if (e.mask) kernels.keep_allowed(logits, covered, e.mask, x);
  else std::copy(logits, logits + n, x);
  std::fill(x + covered, x + n, NEG_INF);
  penalise(e, scratch.counts, x);
  for (int64_t i = 0; i < e.num_biases; ++i) x[e.bias_ids[i]] += e.bias_values[i];
  return x;
}

// Whether the row holds neither a NaN nor a +inf; the highest logit.
bool find_highest(const Kernels& kernels, const float* logits, int64_t n, float* highest) {
  bool is_sound;
  *highest = kernels.row_max(logits, n, &is_sound);
  return is_sound;
}

}  // namespace

Sample sample_row(const Kernels& kernels, const float* logits, int64_t vocab_size, const SampleParams& params,
                  const RowEdits* edits, SamplerScratch& scratch) {
  Sample sample;
  float highest, highest_edited;
  if (!find_highest(kernels, logits, vocab_size, &highest) || highest == NEG_INF) return sample;
  if (!edits) {
    sample.token_id = choose(kernels, logits, vocab_size, highest, params, scratch);
  } else {
    const float* edited = edit(kernels, logits, vocab_size, *edits, scratch);
    if (!find_highest(kernels, edited, vocab_size, &highest_edited)) return sample;
    if (highest_edited == NEG_INF) {
      sample.token_id = ALL_FORBIDDEN;
      return sample;
    }
    sample.token_id = choose(kernels, edited, vocab_size, highest_edited, params, scratch);
  }
  if (params.num_logprobs >= 0)
    add_logprobs(kernels, logits, vocab_size, highest, params.num_logprobs, scratch, sample);
  return sample;
}

Sample score_row(const Kernels& kernels, const float* logits, int64_t vocab_size, int32_t token_id, int num_logprobs,
                 SamplerScratch& scratch) {
  Sample sample;
  float highest;
  if (!find_highest(kernels, logits, vocab_size, &highest) || highest == NEG_INF) return sample;
  sample.token_id = token_id;
  add_logprobs(kernels, logits, vocab_size, highest, num_logprobs, scratch, sample);
  return sample;
}

}  // namespace roseinfer
