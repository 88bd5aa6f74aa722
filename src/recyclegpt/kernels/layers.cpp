// All layers of a pass over few rows, and the norm after them, in one operator.
//
// It computes what linear, rms_norm, rotate_store, attend and swiglu compute one after the other, with the same loops,
// and rounds where they round, so its bits are theirs. n = B T rows, C model width, H query heads, G key/value heads,
// D width of a head, F SwiGLU width, S slots.

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

struct Shape {
  int64_t B, T, C, H, G, D, F, S;
  float eps;
};

template <typename E, typename W>
class Pass {
  const Shape s;
  const int64_t n = s.B * s.T, group = s.H / s.G, heads = s.H + 2 * s.G;
  const float *cos, *sin;
  const int64_t* positions;
  E* x;  // (n, C), from layer to layer
  std::vector<E> qkv, q, y, gate_up, gated;
  Team team;

  // What a thread has of its own.
  struct Own {
    Rows<E, W> rows;
    std::vector<E> normed, head;
    std::vector<typename Dot<E>::X> query;
    std::vector<float> score;
  };

  // A product's bias is added after it was rounded, as the operators do.
  void times(const Own& own, const Product& product, int64_t O, int64_t phase, E* to, const E* plus) {
    const int64_t blocks = blocks_of(O), step = part_of(blocks);
    const Target<E> target = {to, plus, product.scale, O};
    team.share(phase, blocks, step, [&](int64_t from, int64_t end) {
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
    rotate_head(from, cos + position * s.D, sin + position * s.D, to, s.D);
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
  void gate(const Own& own, const Product& product, int64_t phase) {
    const int64_t blocks = s.F / kLanes;
    const W* weight = static_cast<const W*>(product.weight);
    const E* bias = static_cast<const E*>(product.bias);
    const Target<E> target = {gate_up.data(), nullptr, product.scale, 2 * s.F};
    team.share(phase, blocks, part_of(blocks), [&](int64_t from, int64_t end) {
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
  Pass(const Shape& shape, const Tensor& cos, const Tensor& sin, const Tensor& positions, E* x, int64_t phases)
      : s(shape), cos(data<float>(cos)), sin(data<float>(sin)), positions(data<int64_t>(positions)), x(x),
        qkv(n * heads * s.D), q(n * s.H * s.D), y(n * s.H * s.D), gate_up(n * 2 * s.F), gated(n * s.F), team(phases) {}

  static constexpr int kPhases = 6;  // of a layer

  void run(const Layer* layers, const Slots* slots, int64_t depth, const void* last_norm) {
    team.run([&] {
      static thread_local Own own;
      for (int64_t l = 0; l < depth; ++l) {
        const Layer& layer = layers[l];
        const int64_t phase = l * kPhases;
        read_normed(own, layer.input_norm);
        times(own, layer.qkv, heads * s.D, phase, qkv.data(), nullptr);
        team.meet();
        team.share(phase + 1, n, 1, [&](int64_t row, int64_t) { fill(own, layer, slots[l], row); });
        team.meet();
        const int64_t queries = s.T * group, tiles = (queries + kQueries - 1) / kQueries;
        team.share(phase + 2, s.B * s.G * tiles, 1, [&](int64_t task, int64_t) {
          const int64_t head = task / tiles, next = task % tiles * kQueries;
          attend(own, slots[l], head / s.G, head % s.G, next, std::min(queries, next + kQueries));
        });
        team.meet();
        own.rows.set(y.data(), n, s.H * s.D);
        times(own, layer.out, s.C, phase + 3, x, x);
        team.meet();
        read_normed(own, layer.post_norm);
        gate(own, layer.gate_up, phase + 4);
        team.meet();
        own.rows.set(gated.data(), n, s.F);
        times(own, layer.down, s.C, phase + 5, x, x);
        team.meet();
      }
      if (last_norm)
        team.share(depth * kPhases, n, 1, [&](int64_t row, int64_t) {
          norm_rows(x + row * s.C, static_cast<const E*>(last_norm), x + row * s.C, 1, s.C, s.eps);
        });
    });
  }
};

template <typename E, typename W>
void run_as(
    const Shape& shape, const Tensor& layers, const Tensor& slots, const Tensor& cos, const Tensor& sin,
    const Tensor& positions, const std::optional<Tensor>& norm, Tensor& x) {
  const int64_t depth = layers.size(0);
  Pass<E, W> pass(shape, cos, sin, positions, mutable_data<E>(x), depth * Pass<E, W>::kPhases + 1);
  pass.run(
      reinterpret_cast<const Layer*>(data<int64_t>(layers)), reinterpret_cast<const Slots*>(data<int64_t>(slots)),
      depth, norm ? data<E>(*norm) : nullptr);
}

// x (n, C) after all layers and the norm, in place. layers (L, 16) and slots (L, 2) hold addresses: of weights in the
// order of `Layer`, and of key and value caches (B, G, S, D).
void layers(
    Tensor x, const Tensor& layers, const Tensor& slots, const Tensor& cos, const Tensor& sin, const Tensor& positions,
    const std::optional<Tensor>& norm, int64_t H, int64_t G, int64_t D, int64_t F, int64_t S, double eps, bool bytes) {
  static_assert(sizeof(Layer) == 16 * sizeof(int64_t));
  check_positions(positions, std::min(S, cos.size(0)));
  const Shape shape = {positions.size(0), positions.size(1), x.size(1), H, G, D, F, S, float(eps)};
  const auto with = [&](auto run) { run(shape, layers, slots, cos, sin, positions, norm, x); };
  if (x.scalar_type() == ScalarType::BFloat16) with(bytes ? run_as<BFloat, uint8_t> : run_as<BFloat, BFloat>);
  else with(bytes ? run_as<float, uint8_t> : run_as<float, float>);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def(
      "layers(Tensor(a!) x, Tensor layers, Tensor slots, Tensor cos, Tensor sin, Tensor positions, Tensor? norm, "
      "int H, int G, int D, int F, int S, float eps, bool bytes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) { library.impl("layers", TORCH_BOX(&layers)); }
