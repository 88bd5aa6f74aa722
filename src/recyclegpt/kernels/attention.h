// Few queries against a key/value cache. B batch, T queries, S slots, H heads, G key/value heads, D width of a head.

#pragma once

#include "vectors.h"

namespace {

constexpr int kQueries = 6;  // read a cache together

// How a query (of elements X) meets a key (of elements E), kWidth numbers at a time.
template <typename E>
struct Dot {
  using X = float;
  static constexpr int kWidth = kLanes;
  static Floats read(const E* from) { return load(from); }
  static Floats add(Floats sum, const X* query, Floats keys) { return fused(load(query), keys, sum); }
};
#ifdef __AVX512BF16__
template <>
struct Dot<BFloat> {
  using X = BFloat;
  static constexpr int kWidth = 2 * kLanes;
  static __m512bh read(const BFloat* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static Floats add(Floats sum, const X* query, __m512bh keys) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, read(query), keys);
  }
};
#endif

// Q queries of one head, and what they have found so far.
template <typename E, int Q>
struct Queries {
  const typename Dot<E>::X* query[Q];  // (D)
  int64_t count[Q];                    // slots that each may see
  float* score[Q];                     // (round_up(S))
};

// Scores of N slots from s on. A sum runs over the width in one order, whatever N and Q are.
template <typename E, int Q, int N>
inline void score_slots(const Queries<E, Q>& queries, const E* key, int64_t s, int64_t D, float scale) {
  const int64_t whole = D / Dot<E>::kWidth * Dot<E>::kWidth;
  static_assert(Q * N <= kLanes);
  Floats sum[kLanes] = {};
  for (int64_t d = 0; d < whole; d += Dot<E>::kWidth)
    for (int n = 0; n < N; ++n) {
      const auto keys = Dot<E>::read(key + (s + n) * D + d);
      for (int q = 0; q < Q; ++q) sum[q * N + n] = Dot<E>::add(sum[q * N + n], queries.query[q] + d, keys);
    }
  const Floats scores = N == 1 ? Floats{} : totals(sum);
  for (int q = 0; q < Q; ++q)
    for (int n = 0; n < N; ++n) {
      float score = N == 1 ? total(sum[q]) : scores[q * N + n];
      for (int64_t d = whole; d < D; ++d)
        score = std::fma(to_float(queries.query[q][d]), to_float(key[(s + n) * D + d]), score);
      queries.score[q][s + n] = score * scale;
    }
}

// Turns the scores of a query into weights, zero from its count on, and returns one over their sum.
inline float to_weights(float* score, int64_t count, int64_t last) {
  std::fill(score + count, score + round_up(last), -INFINITY);
  Floats sums = {}, most = load(score);
  for (int64_t s = kLanes; s < round_up(last); s += kLanes) {
    const Floats scores = load(score + s);
    most = scores > most ? scores : most;
  }
  float largest = most[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = std::max(largest, most[lane]);
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
inline void mix(const Queries<E, Q>& queries, const float* share, const E* value, int64_t last, int64_t D, E* const* y) {
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
void attend_some(const Queries<E, Q>& queries, const E* key, const E* value, int64_t D, E** y) {
  const float scale = 1 / std::sqrt(float(D));
  const int64_t last = *std::max_element(queries.count, queries.count + Q);
  constexpr int N = kLanes / Q;  // slots whose dot products run side by side
  int64_t s = 0;
  for (; s + N <= last; s += N) score_slots<E, Q, N>(queries, key, s, D, scale);
  if (s < last && last >= N) score_slots<E, Q, N>(queries, key, last - N, D, scale);  // some a second time
  else for (; s < last; ++s) score_slots<E, Q, 1>(queries, key, s, D, scale);
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

// One key/value head of one row. Of its T times `group` queries, Q together, then fewer.
template <typename E>
struct Head {
  const E *q, *key, *value;
  const int64_t* positions;
  E* y;
  int64_t H, group, D;
  typename Dot<E>::X* query;  // room for kQueries, if their elements are not E
  float* score;               // and for theirs
  int64_t score_size;

  template <int Q = kQueries>
  void attend(int64_t next, int64_t end) const {
    for (; next + Q <= end; next += Q) {
      Queries<E, Q> queries;
      E* to[Q];
      for (int i = 0; i < Q; ++i) {
        const int64_t t = (next + i) / group, at = (t * H + (next + i) % group) * D;
        if constexpr (std::is_same_v<E, typename Dot<E>::X>) queries.query[i] = q + at;
        else {
          for (int64_t d = 0; d < D; ++d) query[i * D + d] = to_float(q[at + d]);
          queries.query[i] = query + i * D;
        }
        queries.count[i] = positions[t] + 1, queries.score[i] = score + i * score_size;
        to[i] = y + at;
      }
      attend_some<E, Q>(queries, key, value, D, to);
    }
    if constexpr (Q > 1)
      if (next < end) attend<Q - 1>(next, end);
  }
};

}  // namespace
