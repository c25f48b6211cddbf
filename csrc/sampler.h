// Choosing a token: a pure function of (logits row, parameters, edits, seed, choice, position).
// The meaning is roseinfer/backends/sampling.py; this is the fast form of it.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.h"

namespace roseinfer {

struct SampleParams {
  float temperature;  // 0 = greedy
  int32_t top_k;      // 0 = off
  float top_p, min_p;
  uint64_t seed;
  int32_t choice;
  int64_t position;
  int32_t num_logprobs;  // -1 = none
};

// What is done to a row's logits first: LogitEdits of roseinfer/core/batch.py, for one row. Penalties are finite, also
// multiplied by any count, and repetition is above 0.
struct RowEdits {
  float repetition, presence, frequency;
  const int32_t* history;
  int64_t history_len, output_start;
  const int32_t* bias_ids;
  const float* bias_values;
  int64_t num_biases;
  const uint32_t* mask;  // null = none
  int64_t mask_tokens;   // those that it covers; the others are forbidden
};

constexpr int32_t NO_TOKEN = -1;       // the row, raw or edited, holds a NaN or +inf, or its raw form nothing but -inf
constexpr int32_t ALL_FORBIDDEN = -2;  // the row is sound, and its edits leave nothing but -inf

struct Sample {
  int32_t token_id = NO_TOKEN;
  float logprob = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

// Memory that sampling a row needs, kept between rows.
struct SamplerScratch {
  std::vector<float> edited, scaled;
  std::vector<int32_t> candidates;
  std::vector<int32_t> counts;  // of each token in a history; all 0 between rows
};

// `edits` may be null. Logprobs are those of the raw logits.
Sample sample_row(const Kernels& kernels, const float* logits, int64_t vocab_size, const SampleParams& params,
                  const RowEdits* edits, SamplerScratch& scratch);

// The logprobs of a token that is known already; its id, or -1 if the row is unsound.
Sample score_row(const Kernels& kernels, const float* logits, int64_t vocab_size, int32_t token_id, int num_logprobs,
                 SamplerScratch& scratch);

// Philox4x32-10 (Salmon et al., 2011): four random words of a counter under a key.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

}  // namespace roseinfer
