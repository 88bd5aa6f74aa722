// Attention of few queries to a key/value cache as an operator; see attention.h.

#include "attention.h"

namespace {

template <typename E>
void attend_all(const Tensor& q, const Tensor& key, const Tensor& value, const Tensor& positions, Tensor& y) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3), G = key.size(1), S = key.size(2);
  const int64_t group = H / G, score_size = round_up(S);
  torch::stable::parallel_for(0, B * G, 1, [&](int64_t from, int64_t to) {
    std::vector<typename Dot<E>::X> query(kQueries * D);
    std::vector<float> score(kQueries * score_size);
    for (int64_t task = from; task < to; ++task) {
      const int64_t b = task / G, queries = (b * T * H + task % G * group) * D, slots = task * S * D;
      const Head<E> head = {
          data<E>(q) + queries, data<E>(key) + slots, data<E>(value) + slots, data<int64_t>(positions) + b * T,
          mutable_data<E>(y) + queries, H, group, D, query.data(), score.data(), score_size};
      head.attend(0, T * group);
    }
  });
}

// q (B, T, H, D) against the slots of key and value (B, G, S, D) up to each query's position (B, T); all contiguous.
Tensor attend(const Tensor& q, const Tensor& key, const Tensor& value, const Tensor& positions) {
  check_cache(q, key, value), check_positions(positions, key.size(2));
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
