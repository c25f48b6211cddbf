// Linears: one tile of 16 weight rows × a panel of up to 16 activation rows.
namespace roseinfer {
namespace {

// Where arithmetic takes longer than reading, the weights ahead are asked for, or the one would wait for the other. One
// row alone reads faster if left to the hardware.
constexpr int PREFETCH_BYTES = 4096;

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

constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

// -zero × the sum of a row's int8 values, where `offset` = -128 × that sum.
template <int ZERO>
inline I zero_point(int32_t offset) {
  static_assert(ZERO == 0 || 1 << log2_of(ZERO) == ZERO);
  if constexpr (ZERO == 0) return set1_i(0);
  return shift_right<7 - log2_of(ZERO)>(set1_i(offset));
}

// Where a Q8Group keeps what belongs to the int8 values, in bytes behind the scales.
constexpr int SCALES = 0;
constexpr int SUMS = offsetof(Q8Group, scaled_sums) - offsetof(Q8Group, scales);
constexpr int OFFSETS = offsetof(Q8Group, offsets) - offsetof(Q8Group, scales);
constexpr int HALF_SUMS = offsetof(Q8Group, half_scaled_sums) - offsetof(Q8Group, scales);
constexpr int HALF_OFFSETS = offsetof(Q8Group, half_offsets) - offsetof(Q8Group, scales);

// A cursor over the groups of a panel, from row `first` on; `next` comes before each group. Everything is a small
// constant offset from two pointers. If gcc could see how the two come about, it would rather keep, and spill, a
// pointer for every row.
struct PanelCursor {
  const int8_t* values;
  const uint8_t* scales;
  PanelCursor(const Q8Group* x, int first)
      : values((x - 1)->values[first]), scales((const uint8_t*)((x - 1)->scales + first)) {}
  template <typename T>
  T at(int offset, int index) const {
    return *((const T*)(scales + offset) + index);
  }
  void next() {
    values += sizeof(Q8Group);
    scales += sizeof(Q8Group);
    asm("" : "+r"(values), "+r"(scales));
  }
};

// Rows first .. first + M - 1 of a panel.
template <Format FMT, int M>
inline void q8_tile_m(const uint8_t* tile, int64_t columns, const Q8Group* x, int first, float* out) {
  constexpr Layout l = layout_of(FMT);
  constexpr bool is_signed = FMT == Format::Q8_0;
  constexpr int zero = is_signed && HAS_SIGNED_DOT ? 0 : l.zero;
  constexpr int halves = l.halves ? 2 : 1;
  constexpr int quads_per_scale = 8 / halves;
  F acc[M];
  for (int m = 0; m < M; ++m) acc[m] = zero_f();
  Groups<FMT> at(tile);
  PanelCursor row(x, first);
  for (int64_t g = 0; g < columns / GROUP; ++g) {
    row.next();
    if constexpr (M >= 4) prefetch(at.group + PREFETCH_BYTES, l.group_bytes);
    Q quads[8];
    load_quads<FMT>(at.group, quads);
    for (int h = 0; h < halves; ++h) {
      const F scale = load_scale<FMT>(at.header, at.group, h);
      F minimum;
      if constexpr (l.has_min) minimum = load_min<FMT>(at.header, at.group, h);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        I dot = zero_point<zero>(l.halves ? row.at<int32_t>(HALF_OFFSETS, 16 * h + m) : row.at<int32_t>(OFFSETS, m));
#pragma GCC unroll 8
        for (int z = 0; z < quads_per_scale; ++z)
          dot = dot4<is_signed>(dot, quads[h * 4 + z], row.values + GROUP * m + 16 * h + 4 * z);
        acc[m] = fma(scale * set1(row.at<float>(SCALES, m)), to_float(dot), acc[m]);
        if constexpr (l.has_min) {
          const float sum = l.halves ? row.at<float>(HALF_SUMS, 16 * h + m) : row.at<float>(SUMS, m);
          acc[m] = fma(minimum, set1(sum), acc[m]);
        }
      }
    }
    at.next(g);
  }
  for (int m = 0; m < M; ++m) store(out + GROUP * m, acc[m]);
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
inline void fma_columns(const float* weights, int count, const float* x, F acc[M]) {
  for (int k = 0; k < count; ++k) {
    const F w = load(weights + 16 * k);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) acc[m] = fma(w, set1(x[GROUP * m + k]), acc[m]);
  }
}

template <Format FMT, int M>
inline void f32_tile_m(const uint8_t* tile, int64_t columns, const F32Group* x, int first, float* out) {
  F acc[M];
  for (int m = 0; m < M; ++m) acc[m] = zero_f();
  alignas(64) float weights[GROUP * 16];
  if constexpr (is_float(FMT)) {
    for (int64_t k0 = 0; k0 < columns; k0 += GROUP) {
      const int count = int(columns - k0 < GROUP ? columns - k0 : GROUP);
      load_columns<FMT>(tile, k0, count, weights);
      fma_columns<M>(weights, count, x[k0 / GROUP].values[first], acc);
    }
  } else {
    Groups<FMT> at(tile);
    for (int64_t g = 0; g < columns / GROUP; ++g) {
      dequantize_group<FMT>(at, weights);
      fma_columns<M>(weights, GROUP, x[g].values[first], acc);
      at.next(g);
    }
  }
  for (int m = 0; m < M; ++m) store(out + GROUP * m, acc[m]);
}

// run(size, first) over `count` rows, LARGEST at once; what is left is rounded up to a power of two, which costs
// less than taking the weights apart once more.
template <int LARGEST, typename Run>
inline void in_register_rows(int count, Run run) {
  int first = 0;
  for (; count - first >= LARGEST; first += LARGEST) run(std::integral_constant<int, LARGEST>(), first);
  if constexpr (LARGEST > 1) {
    if (count - first > LARGEST / 2) run(std::integral_constant<int, LARGEST>(), first);
    else if (count > first)
      in_register_rows<LARGEST / 2>(count - first, [&](auto size, int row) { run(size, first + row); });
  }
}

constexpr int ROWS_AT_ONCE = REGISTER_ROWS < PANEL_ROWS ? REGISTER_ROWS : PANEL_ROWS;

template <Format FMT>
void q8_tile(const uint8_t* tile, int64_t columns, const void* panel, int count, float* out) {
  in_register_rows<ROWS_AT_ONCE>(count, [&](auto size, int first) {
    q8_tile_m<FMT, decltype(size)::value>(tile, columns, (const Q8Group*)panel, first, out + GROUP * first);
  });
}

template <Format FMT>
void f32_tile(const uint8_t* tile, int64_t columns, const void* panel, int count, float* out) {
  in_register_rows<ROWS_AT_ONCE>(count, [&](auto size, int first) {
    f32_tile_m<FMT, decltype(size)::value>(tile, columns, (const F32Group*)panel, first, out + GROUP * first);
  });
}

// bf16 weights and activations, two columns per step.
template <int M>
inline void bf16_tile_m(const uint8_t* tile, int64_t columns, const BF16Group* x, int first, float* out) {
  F acc[M];
  for (int m = 0; m < M; ++m) acc[m] = zero_f();
  const int64_t pairs = (columns + 1) / 2;
  for (int64_t p = 0; p < pairs; p += GROUP / 2, ++x) {
    const int count = int(pairs - p < GROUP / 2 ? pairs - p : GROUP / 2);
    const uint32_t* words = (const uint32_t*)x->values[first];
    for (int i = 0; i < count; ++i) {
      if constexpr (M >= 4) __builtin_prefetch(tile + 64 * (p + i) + PREFETCH_BYTES);
      const P w = load_pairs(tile + 64 * (p + i));
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) acc[m] = dot2(acc[m], w, words[GROUP / 2 * m + i]);
    }
  }
  for (int m = 0; m < M; ++m) store(out + GROUP * m, acc[m]);
}

void bf16_tile(const uint8_t* tile, int64_t columns, const void* panel, int count, float* out) {
  in_register_rows<ROWS_AT_ONCE>(count, [&](auto size, int first) {
    bf16_tile_m<decltype(size)::value>(tile, columns, (const BF16Group*)panel, first, out + GROUP * first);
  });
}

void finish(const Epilogue& e, float* result, const float* up, int count) {
  for (int m = 0; m < count; ++m) {
    for (int i = 0; i < e.width; i += 16) {
      F y = load(result + GROUP * m + i);
      if (e.bias) y = y + load(e.bias + i);
      if (e.has_activation) y = activation(y, e.activation);
      if (up) y = y * (e.up_bias ? load(up + GROUP * m + i) + load(e.up_bias + i) : load(up + GROUP * m + i));
      if (e.residual) y = load_part(e.residual + m * e.residual_stride + i, e.width - i) + y;
      store(result + GROUP * m + i, y);
    }
  }
}

}  // namespace
}  // namespace roseinfer
