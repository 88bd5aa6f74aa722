// A whole pass as one operator, and a chain of drafts as one; see pass.h.

#include "pass.h"

namespace {

template <typename E, typename W>
void states_as(const Shape& s, const Model& model, const Tensor& tokens, const std::optional<Tensor>& hidden,
               const Tensor& positions, Tensor& x) {
  Team team(Pass<E, W>::phases(s.depth));
  Pass<E, W> pass(s, model, team, data<int64_t>(positions), mutable_data<E>(x));
  team.run([&] {
    static thread_local typename Pass<E, W>::Own own;
    own.phase = 0;
    pass.run(own, data<int64_t>(tokens), hidden ? data<E>(*hidden) : nullptr);
  });
}

// Drafts m tokens for each row, each from the state that the one before gave, while a row's chance is above the threshold.
template <typename E, typename W>
void draft_as(const Shape& s, const Model& model, const Tensor& state, Tensor& text, const Tensor& newest, int64_t m,
              float threshold, Tensor& count) {
  std::vector<E> before(data<E>(state), data<E>(state) + s.B * s.C), after(s.B * s.C), logits(s.B * s.O);
  std::vector<float> chance(s.B, 1);  // that all tokens drafted so far are right
  std::vector<int64_t> tokens(s.B), positions(data<int64_t>(newest), data<int64_t>(newest) + s.B);
  int64_t *counts = mutable_data<int64_t>(count), *written = mutable_data<int64_t>(text);
  std::fill(counts, counts + s.B, 0);
  Team team(m * (Pass<E, W>::phases(s.depth) + 2));
  Pass<E, W> pass(s, model, team, positions.data(), after.data());
  team.run([&] {
    static thread_local typename Pass<E, W>::Own own;
    own.phase = 0;
    for (int64_t number = 1; number <= m; ++number) {
      pass.head(own, before.data(), logits.data());
      pass.share(own, s.B, 1, [&](int64_t b, int64_t) {
        const E* its = logits.data() + b * s.O;
        const int64_t index = first_largest(its, s.O);
        tokens[b] = model.ends.draft_ids ? model.ends.draft_ids[index] : index;
        written[b * text.size(1) + data<int64_t>(newest)[b] + number] = tokens[b];
        positions[b] = data<int64_t>(newest)[b] + number - 1;
        if (threshold > 0) chance[b] *= confidence(its, s.O, index);
        counts[b] += chance[b] > threshold;
      });
      if (number == m || std::none_of(counts, counts + s.B, [&](int64_t c) { return c == number; })) break;
      pass.run(own, tokens.data(), before.data());
      pass.share(own, s.B, 1, [&](int64_t b, int64_t) {
        std::copy_n(after.data() + b * s.C, s.C, before.data() + b * s.C);
      });
    }
  });
}

template <typename F>
void for_formats(ScalarType states, bool bytes, const F& run) {
  if (states == ScalarType::BFloat16) bytes ? run(BFloat(), uint8_t()) : run(BFloat(), BFloat());
  else bytes ? run(float(), uint8_t()) : run(float(), float());
}

Model model_of(const Tensor& ends, const Tensor& layers, const Tensor& slots, const Tensor& cos, const Tensor& sin) {
  static_assert(sizeof(Layer) == 16 * sizeof(int64_t) && sizeof(Ends) == 11 * sizeof(int64_t));
  return {
      *reinterpret_cast<const Ends*>(data<int64_t>(ends)), reinterpret_cast<const Layer*>(data<int64_t>(layers)),
      reinterpret_cast<const Slots*>(data<int64_t>(slots)), data<float>(cos), data<float>(sin)};
}

// States (B, T, C) of tokens (B, T) after all layers and the norm. Addresses: ends (11), layers (L, 16), slots (L, 2),
// in the order of `Ends`, `Layer` and `Slots`. hidden (B, T, C) where there is a fold.
Tensor states(
    const Tensor& tokens, const std::optional<Tensor>& hidden, const Tensor& like, const Tensor& ends,
    const Tensor& layers, const Tensor& slots, const Tensor& cos, const Tensor& sin, const Tensor& positions, int64_t H,
    int64_t G, int64_t D, int64_t F, int64_t S, int64_t O, double eps, bool bytes) {
  check_positions(positions, std::min(S, cos.size(0)));
  const Shape shape = {tokens.size(0), tokens.size(1), like.size(1), H, G, D, F, S, O, layers.size(0), float(eps)};
  Tensor x = torch::stable::new_empty(like, {shape.B, shape.T, shape.C}, like.scalar_type());
  const Model model = model_of(ends, layers, slots, cos, sin);
  for_formats(like.scalar_type(), bytes, [&](auto e, auto w) {
    states_as<decltype(e), decltype(w)>(shape, model, tokens, hidden, positions, x);
  });
  return x;
}

// Writes m drafted tokens of each row into text (B, S') behind position newest (B), the first from state (B, C), and
// returns of how many the module was confident (B); a threshold of zero asks for no confidence.
Tensor draft(
    const Tensor& state, Tensor text, const Tensor& newest, const Tensor& ends, const Tensor& layers,
    const Tensor& slots, const Tensor& cos, const Tensor& sin, int64_t H, int64_t G, int64_t D, int64_t F, int64_t S,
    int64_t O, double eps, bool bytes, int64_t m, double threshold) {
  const Shape shape = {state.size(0), 1, state.size(1), H, G, D, F, S, O, layers.size(0), float(eps)};
  check_positions(newest, std::min({S, cos.size(0), text.size(1)}) - m);
  Tensor count = torch::stable::new_empty(newest, {shape.B}, ScalarType::Long);
  const Model model = model_of(ends, layers, slots, cos, sin);
  for_formats(state.scalar_type(), bytes, [&](auto e, auto w) {
    draft_as<decltype(e), decltype(w)>(shape, model, state, text, newest, m, float(threshold), count);
  });
  return count;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def(
      "states(Tensor tokens, Tensor? hidden, Tensor like, Tensor ends, Tensor layers, Tensor slots, Tensor cos, "
      "Tensor sin, Tensor positions, int H, int G, int D, int F, int S, int O, float eps, bool bytes) -> Tensor");
  library.def(
      "draft(Tensor state, Tensor(a!) text, Tensor newest, Tensor ends, Tensor layers, Tensor slots, Tensor cos, "
      "Tensor sin, int H, int G, int D, int F, int S, int O, float eps, bool bytes, int m, float threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) {
  library.impl("states", TORCH_BOX(&states));
  library.impl("draft", TORCH_BOX(&draft));
}
