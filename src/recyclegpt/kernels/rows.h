// What stands between the matrix products of a pass, for one thread: norm, gate, rotation, choice.
#pragma once

#include "vectors.h"

namespace {

template <typename E>
void norm_rows(const E* x, const E* weight, E* y, int64_t n, int64_t C, float eps) {
  const int64_t whole = C / kLanes * kLanes;
  for (; n > 0; --n, x += C, y += C) {
    Floats squares = {};
    for (int64_t c = 0; c < whole; c += kLanes) squares = fused(load(x + c), load(x + c), squares);
    float sum = total(squares);
    for (int64_t c = whole; c < C; ++c) sum += to_float(x[c]) * to_float(x[c]);
    const float scale = 1 / std::sqrt(sum / float(C) + eps);
    for (int64_t c = 0; c < whole; c += kLanes) store(y + c, load(x + c) * scale * load(weight + c));
    for (int64_t c = whole; c < C; ++c) store(y + c, to_float(x[c]) * scale * to_float(weight[c]));
  }
}

template <typename E>
void gate_row(const E* gate, const E* up, E* y, int64_t F) {
  int64_t f = 0;
  for (; f + kLanes <= F; f += kLanes) {
    const Floats x = load(gate + f), decay = exponential(x < 0.0f ? x : -x);  // of -|x|
    store(y + f, x * (x < 0.0f ? decay : Floats{} + 1.0f) / (1.0f + decay) * load(up + f));
  }
  for (; f < F; ++f) {
    const float x = to_float(gate[f]);
    store(y + f, x / (1 + std::exp(-x)) * to_float(up[f]));
  }
}

template <typename E>
void rotate_head(const E* x, const float* cos, const float* sin, E* y, int64_t D) {
  for (int64_t d = 0; d < D / 2; ++d) {
    const float low = to_float(x[d]), high = to_float(x[d + D / 2]);
    store(y + d, low * cos[d] - high * sin[d]);
    store(y + d + D / 2, high * cos[d + D / 2] + low * sin[d + D / 2]);
  }
}

// Index of a row's largest value, the first of equals; NaN counts as the largest, as torch has it.
template <typename E>
int64_t first_largest(const E* x, int64_t V) {
  Ints best = Ints{} + INT32_MIN, at = {}, now = {};
  for (int lane = 0; lane < kLanes; ++lane) now[lane] = lane;
  const auto take = [&](Floats values) {
    values += 0.0f;  // both zeros are one
    const Ints bits = (Ints)values;  // made into whole numbers in the order of the values
    const Ints keys = values != values ? Ints{} + INT32_MAX : bits < 0 ? bits ^ 0x7fffffff : bits;
    const Ints more = keys > best;
    best = more ? keys : best, at = more ? now : at, now += kLanes;
  };
  int64_t v = 0;
  for (; v + kLanes <= V; v += kLanes) take(load(x + v));
  if (v < V) {
    float rest[kLanes];
    std::fill(rest, rest + kLanes, -INFINITY);
    for (int64_t lane = 0; v + lane < V; ++lane) rest[lane] = to_float(x[v + lane]);
    take(load(rest));
  }
  int first = 0;
  for (int lane = 1; lane < kLanes; ++lane)
    if (best[lane] > best[first] || (best[lane] == best[first] && at[lane] < at[first])) first = lane;
  return at[first];
}

// Probability of the largest, which stands at `at`.
template <typename E>
float confidence(const E* x, int64_t V, int64_t at) {
  const float largest = to_float(x[at]);
  Floats sums = {};
  int64_t v = 0;
  for (; v + kLanes <= V; v += kLanes) sums += exponential(load(x + v) - largest);
  float sum = total(sums);
  for (; v < V; ++v) sum += std::exp(to_float(x[v]) - largest);
  return 1 / sum;
}

}  // namespace
