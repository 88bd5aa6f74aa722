// A pass over few rows by one team of threads, from token ids to the norm after the last layer.
//
// It computes what linear, rms_norm, rotate_store, attend and swiglu compute one after the other, with the same loops,
// and rounds where they round, so its bits are theirs. n = B T rows, C model width, H query heads, G key/value heads,
// D width of a head, F SwiGLU width, S slots, O outputs of the LM head.

#pragma once

#include "attention.h"
#include "product.h"
#include "rows.h"
#include "team.h"

namespace {

// Addresses of one layer's tensors, as Python lists them (`LayerStack`); zero where there is none.
struct Product {
  const void* weight;
  const float* scale;
  const void* bias;
};
struct Layer {
  const void* input_norm;
  Product qkv;
  const void *q_norm, *k_norm;
  Product out;
  const void* post_norm;
  Product gate_up, down;
};
struct Slots {
  void *keys, *values;
};
// What stands around the layers; the backbone has no fold, the norms may be absent.
struct Ends {
  const void *embedding, *embed_norm, *hidden_norm;
  Product fold;
  const void* norm;
  Product head;
  const int64_t* draft_ids;
};

struct Shape {
  int64_t B, T, C, H, G, D, F, S, O, depth;
  float eps;
};

// All that stays the same from pass to pass.
struct Model {
  const Ends& ends;
  const Layer* layers;
  const Slots* slots;
  const float *cos, *sin;
};

template <typename E, typename W>
class Pass {
  const Shape s;
  const Model& model;
  Team& team;
  const int64_t* positions;
  E* x;  // (n, C), from layer to layer
  const int64_t n = s.B * s.T, group = s.H / s.G, heads = s.H + 2 * s.G;
  std::vector<E> both, qkv, q, y, gate_up, gated;

 public:
  // What a thread has of its own.
  struct Own {
    int64_t phase;  // of the operator: all threads count alike
    Rows<E, W> rows;
    std::vector<E> normed, head;
    std::vector<typename Dot<E>::X> query;
    std::vector<float> score;
  };

  template <typename F>
  void share(Own& own, int64_t count, int64_t step, const F& part) {
    team.share(own.phase++, count, step, part);
    team.meet();
  }

 private:
  // A product's bias is added after it was rounded, as the operators do.
  void times(Own& own, const Product& product, int64_t O, E* to, const E* plus) {
    const int64_t blocks = blocks_of(O), step = part_of(blocks);
    const Target<E> target = {to, plus, product.scale, O};
    share(own, blocks, step, [&](int64_t from, int64_t end) {
      times_blocks(own.rows, static_cast<const W*>(product.weight), from, end, target);
      if (product.bias) add_bias(to, static_cast<const E*>(product.bias), from * kLanes, std::min(O, end * kLanes), O);
    });
  }
  void add_bias(E* to, const E* bias, int64_t from, int64_t end, int64_t O) const {
    for (int64_t row = 0; row < n; ++row)
      for (int64_t o = from; o < end; ++o) store(to + row * O + o, to_float(to[row * O + o]) + to_float(bias[o]));
  }
  // Even, so that no tile is cut, and some eight a thread.
  int64_t part_of(int64_t blocks) const {
    return std::max<int64_t>(1, blocks / (team.threads * 8 * kBlocks)) * kBlocks;
  }
  void normed_or_same(const E* from, const void* weight, E* to) const {
    if (weight) norm_rows(from, static_cast<const E*>(weight), to, 1, s.C, s.eps);
    else std::memcpy(to, from, s.C * sizeof(E));
  }
  void read_normed(Own& own, const void* weight) {
    if (!weight) return own.rows.set(x, n, s.C);
    own.normed.resize(n * s.C);
    norm_rows(x, static_cast<const E*>(weight), own.normed.data(), n, s.C, s.eps);
    own.rows.set(own.normed.data(), n, s.C);
  }
  void rotated(Own& own, const E* from, const void* norm, int64_t position, E* to) const {
    if (norm) {
      own.head.resize(s.D);
      norm_rows(from, static_cast<const E*>(norm), own.head.data(), 1, s.D, s.eps);
      from = own.head.data();
    }
    rotate_head(from, model.cos + position * s.D, model.sin + position * s.D, to, s.D);
  }
  // The queries of a row are rotated, its keys and values written into their slots.
  void fill(Own& own, const Layer& layer, const Slots& slots, int64_t row) {
    const E* from = qkv.data() + row * heads * s.D;
    for (int64_t h = 0; h < s.H; ++h)
      rotated(own, from + h * s.D, layer.q_norm, positions[row], q.data() + (row * s.H + h) * s.D);
    for (int64_t g = 0; g < s.G; ++g) {
      const int64_t to = ((row / s.T * s.G + g) * s.S + positions[row]) * s.D;
      rotated(own, from + (s.H + g) * s.D, layer.k_norm, positions[row], static_cast<E*>(slots.keys) + to);
      std::memcpy(static_cast<E*>(slots.values) + to, from + (s.H + s.G + g) * s.D, s.D * sizeof(E));
    }
  }
  // Some queries of key/value head g of batch row b.
  void attend(Own& own, const Slots& slots, int64_t b, int64_t g, int64_t next, int64_t end) {
    const int64_t at = (b * s.T * s.H + g * group) * s.D, cache = (b * s.G + g) * s.S * s.D, score_size = round_up(s.S);
    own.query.resize(kQueries * s.D), own.score.resize(kQueries * score_size);
    const Head<E> head = {
        q.data() + at, static_cast<const E*>(slots.keys) + cache, static_cast<const E*>(slots.values) + cache,
        positions + b * s.T, y.data() + at, s.H, group, s.D, own.query.data(), own.score.data(), score_size};
    head.attend(next, end);
  }
  // Gate and up of the same outputs, then their product. Block b of up stands F outputs after that of gate.
  void gate(Own& own, const Product& product) {
    const int64_t blocks = s.F / kLanes;
    const W* weight = static_cast<const W*>(product.weight);
    const E* bias = static_cast<const E*>(product.bias);
    const Target<E> target = {gate_up.data(), nullptr, product.scale, 2 * s.F};
    share(own, blocks, part_of(blocks), [&](int64_t from, int64_t end) {
      for (const int64_t first : {int64_t(0), blocks}) {
        times_blocks(own.rows, weight, first + from, first + end, target);
        if (bias) add_bias(gate_up.data(), bias, (first + from) * kLanes, (first + end) * kLanes, 2 * s.F);
      }
      for (int64_t row = 0; row < n; ++row) {
        const E* both = gate_up.data() + row * 2 * s.F + from * kLanes;
        gate_row(both, both + s.F, gated.data() + row * s.F + from * kLanes, (end - from) * kLanes);
      }
    });
  }

 public:
  Pass(const Shape& shape, const Model& model, Team& team, const int64_t* positions, E* x)
      : s(shape), model(model), team(team), positions(positions), x(x), both(model.ends.fold.weight ? n * 2 * s.C : 0),
        qkv(n * heads * s.D), q(n * s.H * s.D), y(n * s.H * s.D), gate_up(n * 2 * s.F), gated(n * s.F) {}

  static int64_t phases(int64_t depth) { return 6 * depth + 3; }

  // Every thread calls this: x from the embedded tokens, with the states that they follow where there is a fold.
  void run(Own& own, const int64_t* tokens, const E* hidden) {
    const Ends& ends = model.ends;
    const bool folds = ends.fold.weight;
    share(own, n, 1, [&](int64_t row, int64_t) {
      const E* embedded = static_cast<const E*>(ends.embedding) + tokens[row] * s.C;
      if (!folds) return normed_or_same(embedded, nullptr, x + row * s.C);
      normed_or_same(embedded, ends.embed_norm, both.data() + row * 2 * s.C);
      normed_or_same(hidden + row * s.C, ends.hidden_norm, both.data() + row * 2 * s.C + s.C);
    });
    if (folds) own.rows.set(both.data(), n, 2 * s.C), times(own, ends.fold, s.C, x, nullptr);
    for (int64_t l = 0; l < s.depth; ++l) {
      const Layer& layer = model.layers[l];
      read_normed(own, layer.input_norm);
      times(own, layer.qkv, heads * s.D, qkv.data(), nullptr);
      share(own, n, 1, [&](int64_t row, int64_t) { fill(own, layer, model.slots[l], row); });
      const int64_t queries = s.T * group, tiles = (queries + kQueries - 1) / kQueries;
      share(own, s.B * s.G * tiles, 1, [&](int64_t task, int64_t) {
        const int64_t head = task / tiles, next = task % tiles * kQueries;
        attend(own, model.slots[l], head / s.G, head % s.G, next, std::min(queries, next + kQueries));
      });
      own.rows.set(y.data(), n, s.H * s.D);
      times(own, layer.out, s.C, x, x);
      read_normed(own, layer.post_norm);
      gate(own, layer.gate_up);
      own.rows.set(gated.data(), n, s.F);
      times(own, layer.down, s.C, x, x);
    }
    if (!ends.norm) return;
    share(own, n, 1, [&](int64_t row, int64_t) { normed_or_same(x + row * s.C, ends.norm, x + row * s.C); });
  }
  // The LM head's logits (n, O) of these states (n, C).
  void head(Own& own, const E* states, E* logits) {
    own.rows.set(states, n, s.C);
    times(own, model.ends.head, s.O, logits, nullptr);
  }
};

}  // namespace
