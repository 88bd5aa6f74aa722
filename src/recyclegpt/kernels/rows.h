// What stands between the matrix products of a layer, for one thread: norm, gate, rotation.
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

}  // namespace
