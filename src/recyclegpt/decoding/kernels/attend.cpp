// Few queries against a key/value cache. B batch, T queries, S slots, H heads, G key/value heads, D width of a head.

#include "vectors.h"

namespace {

// Dot products of a query with four keys at once: their sums run side by side.
template <typename E>
inline void score_four(const float* query, const E* key, int64_t D, float* score) {
  Floats sum[4] = {};
  for (int64_t d = 0; d < D; d += kLanes) {
    const Floats values = load(query + d);
    for (int s = 0; s < 4; ++s) sum[s] += values * load(key + s * D + d);
  }
  for (int s = 0; s < 4; ++s) score[s] = total(sum[s]);
}

template <typename E>
inline float score_one(const float* query, const E* key, int64_t D) {
  const int64_t whole = D / kLanes * kLanes;
  Floats sum = {};
  for (int64_t d = 0; d < whole; d += kLanes) sum += load(query + d) * load(key + d);
  float score = total(sum);
  for (int64_t d = whole; d < D; ++d) score += query[d] * to_float(key[d]);
  return score;
}

// Sums of values weighted by their scores, for 4 vectors of lanes at a time where the head is that wide.
template <typename E, int N>
inline void mix(const float* score, const E* value, int64_t count, int64_t D, float share, E* y) {
  Floats sum[N] = {};
  for (int64_t s = 0; s < count; ++s)
    for (int n = 0; n < N; ++n) sum[n] += score[s] * load(value + s * D + n * kLanes);
  for (int n = 0; n < N; ++n) store(y + n * kLanes, sum[n] * share);
}

// One query of one head against the first `count` slots of key and value (S, D).
template <typename E>
void attend_one(const E* q, const E* key, const E* value, int64_t count, int64_t D, float* query, float* score, E* y) {
  const float scale = 1 / std::sqrt(float(D));
  for (int64_t d = 0; d < D; ++d) query[d] = to_float(q[d]) * scale;
  int64_t s = 0;
  if (D % kLanes == 0)
    for (; s + 4 <= count; s += 4) score_four(query, key + s * D, D, score + s);
  for (; s < count; ++s) score[s] = score_one(query, key + s * D, D);
  const float largest = *std::max_element(score, score + count);
  std::fill(score + count, score + round_up(count), -INFINITY);
  Floats sums = {};
  for (s = 0; s < count; s += kLanes) {
    Floats weights = exponential(load(score + s) - largest);
    for (int64_t lane = count - s; lane < kLanes; ++lane) weights[lane] = 0;
    store(score + s, weights);
    sums += weights;
  }
  const float share = 1 / total(sums);
  int64_t d = 0;
  for (; d + 4 * kLanes <= D; d += 4 * kLanes) mix<E, 4>(score, value + d, count, D, share, y + d);
  for (; d + kLanes <= D; d += kLanes) mix<E, 1>(score, value + d, count, D, share, y + d);
  for (; d < D; ++d) {
    float mixed = 0;
    for (s = 0; s < count; ++s) mixed += score[s] * to_float(value[s * D + d]);
    store(y + d, mixed * share);
  }
}

template <typename E>
void attend_all(const Tensor& q, const Tensor& key, const Tensor& value, const Tensor& positions, Tensor& y) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3), G = key.size(1), S = key.size(2);
  const int64_t *position = data<int64_t>(positions), group = H / G;
  torch::stable::parallel_for(0, B * G, 1, [&](int64_t from, int64_t to) {
    std::vector<float> query(D), score(round_up(S));
    for (int64_t task = from; task < to; ++task) {
      const int64_t b = task / G, g = task % G, slots = task * S * D;
      for (int64_t t = 0; t < T; ++t)
        for (int64_t h = g * group; h < (g + 1) * group; ++h) {
          const int64_t at = ((b * T + t) * H + h) * D;
          attend_one(
              data<E>(q) + at, data<E>(key) + slots, data<E>(value) + slots, position[b * T + t] + 1, D, query.data(),
              score.data(), mutable_data<E>(y) + at);
        }
    }
  });
}

// q (B, T, H, D) against the slots of key and value (B, G, S, D) up to each query's position (B, T); all contiguous.
Tensor attend(const Tensor& q, const Tensor& key, const Tensor& value, const Tensor& positions) {
  Tensor y = torch::stable::empty_like(q);
  if (q.scalar_type() == ScalarType::BFloat16) attend_all<BFloat>(q, key, value, positions, y);
  else attend_all<float>(q, key, value, positions, y);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def("attend(Tensor q, Tensor key, Tensor value, Tensor positions) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) { library.impl("attend", TORCH_BOX(&attend)); }
