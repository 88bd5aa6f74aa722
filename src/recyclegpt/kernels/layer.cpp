// What stands between the matrix products of a layer, each as one call: norm, rotation with cache write, gate.
//
// n rows, C model width, F SwiGLU width. B batch, T positions, H heads, G key/value heads, D width of a head, S slots.

#include "rows.h"

namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("swiglu(Tensor gate_up) -> Tensor");
  library.def(
      "rotate_store(Tensor qkv, Tensor cos, Tensor sin, Tensor positions, Tensor(a!) key, Tensor(b!) value) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) {
  library.impl("rms_norm", TORCH_BOX(&rms_norm));
  library.impl("swiglu", TORCH_BOX(&swiglu));
  library.impl("rotate_store", TORCH_BOX(&rotate_store));
}
