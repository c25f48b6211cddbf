// Elementary functions over sixteen lanes.
namespace roseinfer {
namespace {

constexpr float NEG_INF = -std::numeric_limits<float>::infinity();

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

// 2^x for x <= 0 (Cephes' coefficients), relative error below 2e-7; clamped at 2^-126. A NaN stays one.
inline F exp2(F x) {
  x = max(set1(-126.0f), x);
  const F n = round(x), r = x - n;
  F p = set1(1.535336188319500e-4f);
  p = fma(p, r, set1(1.339887440266574e-3f));
  p = fma(p, r, set1(9.618437357674640e-3f));
  p = fma(p, r, set1(5.550332471162809e-2f));
  p = fma(p, r, set1(2.402264791363012e-1f));
  p = fma(p, r, set1(6.931472028550421e-1f));
  p = fma(p, r, set1(1.0f));
  return scale_by_power(p, n);
}

inline float first_lane(F x) {
  float lanes[16];
  store(lanes, x);
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

}  // namespace
}  // namespace roseinfer
