// Few queries against a key/value cache. B batch, T queries, S slots, H heads, G key/value heads, D width of a head.

#pragma once

#include "vectors.h"

namespace {

constexpr int kQueries = 4;  // read a cache together
constexpr int kSlots = 4;    // whose dot products run side by side

// Q queries of one head, each in fp32 and scaled, and what they have found so far.
template <int Q>
struct Queries {
  const float* query[Q];  // (D)
  int64_t count[Q];       // slots that each may see
  float* score[Q];        // (round_up(S))
};

// Scores of N slots from s on. A sum runs over the width in one order, whatever N and Q are.
template <typename E, int Q, int N>
inline void score_slots(const Queries<Q>& queries, const E* key, int64_t s, int64_t D) {
  const int64_t whole = D / kLanes * kLanes;
  Floats sum[Q][N] = {};
  for (int64_t d = 0; d < whole; d += kLanes)
    for (int n = 0; n < N; ++n) {
      const Floats keys = load(key + (s + n) * D + d);
      for (int q = 0; q < Q; ++q) sum[q][n] = fused(load(queries.query[q] + d), keys, sum[q][n]);
    }
  for (int q = 0; q < Q; ++q)
    for (int n = 0; n < N; ++n) {
      float score = total(sum[q][n]);
      for (int64_t d = whole; d < D; ++d)
        score = std::fma(queries.query[q][d], to_float(key[(s + n) * D + d]), score);
      queries.score[q][s + n] = score;
    }
}

// Turns the scores of a query into weights, zero from its count on, and returns one over their sum.
inline float to_weights(float* score, int64_t count, int64_t last) {
  const float largest = *std::max_element(score, score + count);
  std::fill(score + count, score + round_up(last), -INFINITY);
  Floats sums = {};
  for (int64_t s = 0; s < round_up(last); s += kLanes) {
    Floats weights = exponential(load(score + s) - largest);
    for (int64_t lane = std::max<int64_t>(0, count - s); lane < kLanes; ++lane) weights[lane] = 0;
    store(score + s, weights);
    sums += weights;
  }
  return 1 / total(sums);
}

// Values weighted by the scores of Q queries, N vectors of the head's width at a time.
template <typename E, int Q, int N>
inline void mix(const Queries<Q>& queries, const float* share, const E* value, int64_t last, int64_t D, E* const* y) {
  Floats sum[Q][N] = {};
  for (int64_t s = 0; s < last; ++s)
    for (int n = 0; n < N; ++n) {
      const Floats values = load(value + s * D + n * kLanes);
      for (int q = 0; q < Q; ++q) sum[q][n] = fused(all(queries.score[q][s]), values, sum[q][n]);
    }
  for (int q = 0; q < Q; ++q)
    for (int n = 0; n < N; ++n) store(y[q] + n * kLanes, sum[q][n] * share[q]);
}

template <typename E, int Q>
void attend_some(const Queries<Q>& queries, const E* key, const E* value, int64_t D, E** y) {
  const int64_t last = *std::max_element(queries.count, queries.count + Q);
  int64_t s = 0;
  for (; s + kSlots <= last; s += kSlots) score_slots<E, Q, kSlots>(queries, key, s, D);
  for (; s < last; ++s) score_slots<E, Q, 1>(queries, key, s, D);
  float share[Q];
  for (int q = 0; q < Q; ++q) share[q] = to_weights(queries.score[q], queries.count[q], last);
  int64_t d = 0;
  const auto advance = [&](int64_t width) {
    d += width;
    for (int q = 0; q < Q; ++q) y[q] += width;
  };
  for (; d + 4 * kLanes <= D; advance(4 * kLanes)) mix<E, Q, 4>(queries, share, value + d, last, D, y);
  for (; d + kLanes <= D; advance(kLanes)) mix<E, Q, 1>(queries, share, value + d, last, D, y);
  for (; d < D; advance(1))
    for (int q = 0; q < Q; ++q) {
      float mixed = 0;
      for (s = 0; s < last; ++s) mixed = std::fma(queries.score[q][s], to_float(value[s * D + d]), mixed);
      store(y[q], mixed * share[q]);
    }
}

// One key/value head of one row: T times `group` queries, Q together, then fewer.
template <typename E>
struct Head {
  const E *q, *key, *value;
  const int64_t* positions;
  E* y;
  int64_t T, H, group, D;
  float *query, *score;  // room for kQueries of each
  int64_t score_size;

  template <int Q>
  void attend(int64_t next) const {
    for (; next + Q <= T * group; next += Q) {
      const float scale = 1 / std::sqrt(float(D));
      Queries<Q> queries;
      E* to[Q];
      for (int i = 0; i < Q; ++i) {
        const int64_t t = (next + i) / group, at = (t * H + (next + i) % group) * D;
        float* scaled = query + i * D;
        for (int64_t d = 0; d < D; ++d) scaled[d] = to_float(q[at + d]) * scale;
        queries.query[i] = scaled, queries.count[i] = positions[t] + 1, queries.score[i] = score + i * score_size;
        to[i] = y + at;
      }
      attend_some<E, Q>(queries, key, value, D, to);
    }
    if constexpr (Q > 1)
      if (next < T * group) attend<Q - 1>(next);
  }
};

}  // namespace
