// What stands between the matrix products of a layer, each as one call: norm, rotation with cache write, gate.
//
// n rows, C model width, F SwiGLU width. B batch, T positions, H heads, G key/value heads, D width of a head, S slots.

#include "rows.h"

namespace {

// Rows of this width that make a second thread worth waking.
inline int64_t grain(int64_t width) { return std::max<int64_t>(1, 32768 / width); }

template <typename E>
void norm_all(const Tensor& x, const Tensor& weight, Tensor& y, int64_t n, int64_t C, float eps) {
  torch::stable::parallel_for(0, n, grain(C), [&](int64_t from, int64_t to) {
    norm_rows(data<E>(x) + from * C, data<E>(weight), mutable_data<E>(y) + from * C, to - from, C, eps);
  });
}

// y = x (n, C) over its root mean square, times weight (C).
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t C = weight.size(0), n = x.numel() / C;
  Tensor y = torch::stable::empty_like(x);
  if (x.scalar_type() == ScalarType::BFloat16)
    norm_all<BFloat>(x, weight, y, n, C, float(eps));
  else
    norm_all<float>(x, weight, y, n, C, float(eps));
  return y;
}

template <typename E>
void gate_all(const Tensor& gate_up, Tensor& y, int64_t n, int64_t F) {
  torch::stable::parallel_for(0, n, grain(F), [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row) {
      const E* both = data<E>(gate_up) + row * 2 * F;
      gate_row(both, both + F, mutable_data<E>(y) + row * F, F);
    }
  });
}

// y (n, F) = silu(gate) * up of rows that hold both (n, 2 F).
Tensor swiglu(const Tensor& gate_up) {
  const int64_t n = gate_up.size(0), F = gate_up.size(1) / 2;
  Tensor y = torch::stable::new_empty(gate_up, {n, F}, gate_up.scalar_type());
  if (gate_up.scalar_type() == ScalarType::BFloat16) gate_all<BFloat>(gate_up, y, n, F);
  else gate_all<float>(gate_up, y, n, F);
  return y;
}

template <typename E>
void rotate_all(
    const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& positions, const Tensor& key,
    const Tensor& value, const Tensor& q) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3), G = key.size(1), S = key.size(2);
  for (int64_t row = 0; row < B * T; ++row) {
    const int64_t position = data<int64_t>(positions)[row];
    const int64_t first = (row / T) * G * S + position;  // its slot of the first head
    const float *its_cos = data<float>(cos) + position * D, *its_sin = data<float>(sin) + position * D;
    const E* from = data<E>(qkv) + row * (H + 2 * G) * D;
    for (int64_t h = 0; h < H; ++h)
      rotate_head(from + h * D, its_cos, its_sin, mutable_data<E>(q) + (row * H + h) * D, D);
    for (int64_t g = 0; g < G; ++g) {
      rotate_head(from + (H + g) * D, its_cos, its_sin, mutable_data<E>(key) + (first + g * S) * D, D);
      std::memcpy(mutable_data<E>(value) + (first + g * S) * D, from + (H + G + g) * D, D * sizeof(E));
    }
  }
}

// Queries q (B, T, H, D) of qkv (B, T, H + 2 G, D), rotated; its keys, rotated, and values go into the slots at
// positions (B, T) of key and value (B, G, S, D). cos and sin are the whole tables, fp32 (positions, D).
Tensor rotate_store(
    const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& positions, Tensor key, Tensor value) {
  const int64_t B = qkv.size(0), T = qkv.size(1), D = qkv.size(3), H = qkv.size(2) - 2 * key.size(1);
  check_cache(qkv, key, value), check_positions(positions, std::min(key.size(2), cos.size(0)));
  Tensor q = torch::stable::new_empty(qkv, {B, T, H, D}, qkv.scalar_type());
  if (qkv.scalar_type() == ScalarType::BFloat16) rotate_all<BFloat>(qkv, cos, sin, positions, key, value, q);
  else rotate_all<float>(qkv, cos, sin, positions, key, value, q);
  return q;
}

// Index of a row's largest value, the first of equals; NaN counts as the largest, as torch has it.
template <typename E>
int64_t first_largest(const E* x, int64_t V) {
  const auto key = [](float value) {  // in the order of the numbers, and one for both zeros
    const float plus = value + 0.0f;
    const int32_t bits = read<int32_t>(&plus);
    return std::isnan(plus) ? INT32_MAX : bits < 0 ? bits ^ 0x7fffffff : bits;
  };
  Ints best = Ints{} + INT32_MIN, at = {}, now = {};
  for (int lane = 0; lane < kLanes; ++lane) now[lane] = lane;
  const int64_t whole = V / kLanes * kLanes;
  for (int64_t v = 0; v < whole; v += kLanes, now += kLanes) {
    const Floats values = load(x + v) + 0.0f;
    const Ints bits = (Ints)values, keys = values != values ? Ints{} + INT32_MAX : bits < 0 ? bits ^ 0x7fffffff : bits;
    const Ints more = keys > best;
    best = more ? keys : best, at = more ? now : at;
  }
  int32_t found = INT32_MIN;
  int64_t index = 0;
  for (int lane = 0; lane < kLanes && whole; ++lane)
    if (best[lane] > found || (best[lane] == found && at[lane] < index)) found = best[lane], index = at[lane];
  for (int64_t v = whole; v < V; ++v)
    if (const int32_t one = key(to_float(x[v])); one > found) found = one, index = v;
  return index;
}

template <typename E>
void first_largest_all(const Tensor& x, Tensor& index, int64_t n, int64_t V) {
  torch::stable::parallel_for(0, n, grain(V), [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row)
      mutable_data<int64_t>(index)[row] = first_largest(data<E>(x) + row * V, V);
  });
}

// Of each row of x (n, V): (n).
Tensor most_likely(const Tensor& x) {
  const int64_t n = x.size(0), V = x.size(1);
  Tensor index = torch::stable::new_empty(x, {n}, ScalarType::Long);
  if (x.scalar_type() == ScalarType::BFloat16) first_largest_all<BFloat>(x, index, n, V);
  else first_largest_all<float>(x, index, n, V);
  return index;
}

// Bits of lowbias32 (nullprogram.com/blog/2018/07/31): each bit of the result depends on each of x.
inline Words mix(Words x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Exponential noise of 16 random words: -log(1 - u), whose smallest values decide and are computed without a difference.
inline Floats exponential_of(Words words) {
  const Floats u = (__builtin_convertvector(words, Floats) + 0.5f) * 0x1p-32f;
  const Floats rest = (__builtin_convertvector(~words, Floats) + 0.5f) * 0x1p-32f;  // 1 - u
  const Ints bits = (Ints)rest - 0x3f400000, exponent = bits >> 23;  // of a fraction in [0.75, 1.5)
  const Floats f = (Floats)((bits & 0x7fffff) + 0x3f400000) - 1.0f;
  Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats log = p * f * f * f - 0.5f * f * f + f + __builtin_convertvector(exponent, Floats) * 0.693147181f;
  const Floats series = u + u * u * (0.5f + u * (0.333333333f + u * (0.25f + u * 0.2f)));
  return u < 0x1p-5f ? series : -log;
}

// Noise (n, V) of the keys (n, 2).
Tensor exponential_noise(const Tensor& keys, int64_t V) {
  const int64_t n = keys.size(0);
  Tensor noise = torch::stable::new_empty(keys, {n, V}, ScalarType::Float);
  torch::stable::parallel_for(0, n * blocks_of(V), 1024, [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block) {
      const int64_t row = block / blocks_of(V), v = block % blocks_of(V) * kLanes;
      Words ids = {};
      for (int lane = 0; lane < kLanes; ++lane) ids[lane] = uint32_t(v + lane);
      const uint32_t first = uint32_t(data<int64_t>(keys)[2 * row]), second = uint32_t(data<int64_t>(keys)[2 * row + 1]);
      const Floats values = exponential_of(mix(mix(ids ^ first) + second));
      std::memcpy(mutable_data<float>(noise) + row * V + v, &values, std::min<int64_t>(kLanes, V - v) * sizeof(float));
    }
  });
  return noise;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("swiglu(Tensor gate_up) -> Tensor");
  library.def("most_likely(Tensor x) -> Tensor");
  library.def("exponential_noise(Tensor keys, int V) -> Tensor");
  library.def(
      "rotate_store(Tensor qkv, Tensor cos, Tensor sin, Tensor positions, Tensor(a!) key, Tensor(b!) value) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) {
  library.impl("rms_norm", TORCH_BOX(&rms_norm));
  library.impl("swiglu", TORCH_BOX(&swiglu));
  library.impl("most_likely", TORCH_BOX(&most_likely));
  library.impl("exponential_noise", TORCH_BOX(&exponential_noise));
  library.impl("rotate_store", TORCH_BOX(&rotate_store));
}
