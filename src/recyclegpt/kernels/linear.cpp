// The product of few rows with a packed weight as an operator; see product.h.

#include "product.h"
#include "team.h"

namespace {

template <typename E, typename W>
void multiply(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale, const std::optional<Tensor>& plus,
    const Tensor& y) {
  const int64_t n = x.size(0), I = x.size(1), O = y.size(1);
  const Target<E> target = {
      mutable_data<E>(y), plus ? data<E>(*plus) : nullptr, scale ? data<float>(*scale) : nullptr, O};
  Rows<E, W> rows;
  rows.set(data<E>(x), n, I);
  // A thread is worth waking for this much, unless another program keeps its core.
  const int64_t grain = passes_alone > 0 ? blocks_of(O) : std::max<int64_t>(1, 16384 / I);
  torch::stable::parallel_for(0, blocks_of(O), grain, [&](int64_t from, int64_t to) {
    times_blocks(rows, data<W>(weight), from, to, target);
  });
}

// plus (n, O) + scale * x (n, I) times the packed weight. The caller checks the shapes.
Tensor linear(
    const Tensor& x, const Tensor& weight, int64_t O, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& plus) {
  const Tensor y = torch::stable::new_empty(x, {x.size(0), O}, x.scalar_type());
  const auto kind = weight.scalar_type();
  if (x.scalar_type() == ScalarType::BFloat16) {
    if (kind == ScalarType::Byte) multiply<BFloat, uint8_t>(x, weight, scale, plus, y);
    else multiply<BFloat, BFloat>(x, weight, scale, plus, y);
  } else {
    if (kind == ScalarType::Byte) multiply<float, uint8_t>(x, weight, scale, plus, y);
    else if (kind == ScalarType::Float) multiply<float, float>(x, weight, scale, plus, y);
    else multiply<float, BFloat>(x, weight, scale, plus, y);
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def("linear(Tensor x, Tensor weight, int out_features, Tensor? scale=None, Tensor? plus=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) { library.impl("linear", TORCH_BOX(&linear)); }
