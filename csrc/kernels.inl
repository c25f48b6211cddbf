// Every kernel, once, over the sixteen-lane vectors of the including file's instruction set.
//
// Row independence: a kernel computes an output by the same sequence of operations whatever `count` rows are
// given beside it. Along the columns and along the keys it goes in ascending order, at fixed absolute borders.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

namespace roseinfer {
namespace {

// Asks for `bytes` from `p` on, in lines of 64.
inline void prefetch(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

}  // namespace
}  // namespace roseinfer

// Each uses those before it.
// clang-format off
#include "math.inl"
#include "linear.inl"
#include "rows.inl"
#include "attention.inl"
// clang-format on

namespace roseinfer {
namespace {

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
  k.bf16_tile = HAS_BF16_DOT ? bf16_tile : nullptr;
  k.to_panel[int(ActType::F32)] = to_f32_panel;
  k.to_panel[int(ActType::Q8)] = to_q8_panel;
  k.to_panel[int(ActType::BF16)] = to_bf16_panel;
  k.finish = finish;
  k.rms_norm = rms_norm;
  k.layer_norm = layer_norm;
  k.rope = rope;
  k.store_key = store_key;
  k.store_value = store_value;
  k.attend = attend;
  k.attend_split = attend_split;
  k.merge_splits = merge_splits;
  k.add = add;
  k.activate = activate;
  k.gated = gated;
  k.keep_allowed = keep_allowed;
  k.row_max = row_max;
  k.noise_reaches = noise_reaches;
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
