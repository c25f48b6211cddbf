// Choosing a token: a pure function of (logits row, parameters, seed, choice, position).
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

struct Sample {
  int32_t token_id = -1;  // -1: the row holds a NaN or +inf, or nothing but -inf
  float logprob = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

// Memory that sampling a row needs, kept between rows.
struct SamplerScratch {
  std::vector<float> scaled;
  std::vector<int32_t> candidates;
};

Sample sample_row(const Kernels& kernels, const float* logits, int64_t vocab_size, const SampleParams& params,
                  SamplerScratch& scratch);

// Philox4x32-10 (Salmon et al., 2011): four random words of a counter under a key.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

}  // namespace roseinfer
