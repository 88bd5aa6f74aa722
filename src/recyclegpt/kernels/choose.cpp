// What chooses a token: the most likely one of a row of logits, and the noise of a draw. n rows, V vocabulary.

#include "rows.h"

namespace {

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

// Noise (n, V) of the keys (n, 2) for the token ids (V).
Tensor exponential_noise(const Tensor& keys, const Tensor& tokens) {
  const int64_t n = keys.size(0), V = tokens.size(0);
  Tensor noise = torch::stable::new_empty(keys, {n, V}, ScalarType::Float);
  torch::stable::parallel_for(0, n * blocks_of(V), 1024, [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block) {
      const int64_t row = block / blocks_of(V), v = block % blocks_of(V) * kLanes;
      Words ids = {};
      for (int lane = 0; lane < kLanes; ++lane) ids[lane] = uint32_t(data<int64_t>(tokens)[std::min(v + lane, V - 1)]);
      const uint32_t first = uint32_t(data<int64_t>(keys)[2 * row]), second = uint32_t(data<int64_t>(keys)[2 * row + 1]);
      const Floats values = exponential_of(mix(mix(ids ^ first) + second));
      std::memcpy(mutable_data<float>(noise) + row * V + v, &values, std::min<int64_t>(kLanes, V - v) * sizeof(float));
    }
  });
  return noise;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def("most_likely(Tensor x) -> Tensor");
  library.def("exponential_noise(Tensor keys, Tensor tokens) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) {
  library.impl("most_likely", TORCH_BOX(&most_likely));
  library.impl("exponential_noise", TORCH_BOX(&exponential_noise));
}
