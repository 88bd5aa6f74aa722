// Few rows against a whole weight matrix: the product that a decoding pass consists of.
//
// Such a pass is bound by memory, since each weight is used once or a few times. Libraries made for large matrices
// reach about half of the bandwidth there. These loops read every weight once, in order, whatever the number of rows:
// a pass over m + 1 tokens costs about what a pass over one costs, in fp32 too.
//
// A result never depends on how many rows were given together: every sum runs in one fixed order. So verified decoding
// equals autoregressive decoding bit for bit, and a row of a batch equals the same row alone.
//
// n rows of x, I their width, O outputs. A packed weight is (O/16, I/2, 32): a step holds the weights of 16 outputs for
// two neighbouring inputs. In fp32 and int8 the first input's 16 come first; in bf16 the two weights of an output are
// neighbours, as AVX512-BF16 wants them.

#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr int kBlocks = 2, kTokens = 8;  // of one tile: 16 sums in registers
#else
constexpr int kBlocks = 1, kTokens = 4;
#endif

template <typename W>
struct Steps {  // any format, against rows in fp32
  using X = float;
  using Sum = Floats;
  struct Weights {
    Floats even, odd;
  };
  static Weights weights(const W* step) { return {load(step), load(step + kLanes)}; }
  static void add(Sum& sum, const Weights& w, const float* x) {
    sum = fused(w.odd, all(x[1]), fused(w.even, all(x[0]), sum));
  }
  static Floats value(Sum sum) { return sum; }
};

template <>
inline Steps<BFloat>::Weights Steps<BFloat>::weights(const BFloat* step) {
  const Words pairs = read<Words>(step);
  return {(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000u)};
}

#ifdef __AVX512BF16__
template <typename W>
struct PairSteps {  // bf16 and int8, against rows in bf16: one instruction multiplies and adds both inputs
  using X = BFloat;
  using Sum = __m512;
  using Weights = __m512bh;
  static Weights weights(const W* step);
  static void add(Sum& sum, Weights w, const BFloat* x) {
    sum = _mm512_dpbf16_ps(sum, w, (__m512bh)_mm512_set1_epi32(read<int32_t>(x)));
  }
  static Floats value(Sum sum) { return (Floats)sum; }
};
template <>
inline __m512bh PairSteps<BFloat>::weights(const BFloat* step) {
  return (__m512bh)_mm512_loadu_si512(step);
}
template <>
inline __m512bh PairSteps<int8_t>::weights(const int8_t* step) {  // whole numbers up to 127 are exact in bf16
  const __m512i even = (__m512i)load(step), odd = (__m512i)load(step + kLanes);
  return (__m512bh)_mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
}
#endif

// Where results go: y (n, O) = scale (16 O/16) * product + plus (n, O); scale and plus may be absent.
template <typename Y>
struct Target {
  Y* y;
  const Y* plus;
  const float* scale;
  int64_t O;

  void put(int64_t row, int64_t output, Floats values) const {
    if (scale) values *= load(scale + output);
    const int64_t at = row * O + output;
    if (O - output >= kLanes) {
      store(y + at, plus ? values + load(plus + at) : values);
      return;
    }
    for (int64_t lane = 0; lane < O - output; ++lane)
      store(y + at + lane, plus ? values[lane] + to_float(plus[at + lane]) : values[lane]);
  }
};

// R blocks of 16 outputs, from output o on, for N rows from `row` on. w is the first of these blocks.
template <typename P, typename W, typename Y, int R, int N>
void tile(const W* w, const typename P::X* x, const Target<Y>& target, int64_t row, int64_t o, int64_t I) {
  typename P::Sum sum[R][N] = {};
  const typename P::X* its_x = x + row * I;
  for (int64_t i = 0; i < I; i += 2) {
    typename P::Weights weights[R];
    for (int r = 0; r < R; ++r) {
      const W* step = w + (r * I + i) * kLanes;
      weights[r] = P::weights(step);
      __builtin_prefetch(step + 2048 / sizeof(W));
    }
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r) P::add(sum[r][n], weights[r], its_x + n * I + i);
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n)
      if (o + r * kLanes < target.O) target.put(row + n, o + r * kLanes, P::value(sum[r][n]));
}

// The same for all rows that are left, N at a time, then fewer.
template <typename P, typename W, typename Y, int R, int N>
void tiles(const W* w, const typename P::X* x, const Target<Y>& target, int64_t row, int64_t n, int64_t o, int64_t I) {
  for (; n - row >= N; row += N) tile<P, W, Y, R, N>(w, x, target, row, o, I);
  if constexpr (N > 1)
    if (row < n) tiles<P, W, Y, R, N - 1>(w, x, target, row, n, o, I);
}

template <typename P, typename W, typename Y>
void multiply(const W* w, const typename P::X* x, const Target<Y>& target, int64_t n, int64_t I) {
  const int64_t blocks = (target.O + kLanes - 1) / kLanes;
  const int64_t grain = std::max<int64_t>(1, 16384 / I);  // a thread is worth waking for this much
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t from, int64_t to) {
    int64_t b = from;
    for (; b + kBlocks <= to; b += kBlocks)
      tiles<P, W, Y, kBlocks, kTokens>(w + b * kLanes * I, x, target, 0, n, b * kLanes, I);
    for (; b < to; ++b) tiles<P, W, Y, 1, kTokens>(w + b * kLanes * I, x, target, 0, n, b * kLanes, I);
  });
}

template <template <typename> typename P, typename X, typename Y>
void multiply_any(const Tensor& weight, const X* x, const Target<Y>& target, int64_t n, int64_t I) {
  if (weight.scalar_type() == ScalarType::Char) multiply<P<int8_t>>(data<int8_t>(weight), x, target, n, I);
  else multiply<P<BFloat>>(data<BFloat>(weight), x, target, n, I);
}

template <typename Y>
Target<Y> make_target(const Tensor& y, const std::optional<Tensor>& plus, const std::optional<Tensor>& scale) {
  return {mutable_data<Y>(y), plus ? data<Y>(*plus) : nullptr, scale ? data<float>(*scale) : nullptr, y.size(1)};
}

// plus (n, O) + scale * x (n, I) times the packed weight. The caller checks the shapes.
Tensor linear(
    const Tensor& x, const Tensor& weight, int64_t O, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& plus) {
  const int64_t n = x.size(0), I = x.size(1);
  const Tensor y = torch::stable::new_empty(x, {n, O}, x.scalar_type());
  if (x.scalar_type() == ScalarType::BFloat16) {
    const auto target = make_target<BFloat>(y, plus, scale);
#ifdef __AVX512BF16__
    multiply_any<PairSteps>(weight, data<BFloat>(x), target, n, I);
#else
    std::vector<float> wide(n * I);
    for (int64_t i = 0; i < n * I; ++i) wide[i] = to_float(data<BFloat>(x)[i]);
    multiply_any<Steps>(weight, wide.data(), target, n, I);
#endif
  } else {
    const auto target = make_target<float>(y, plus, scale);
    if (weight.scalar_type() == ScalarType::Float)
      multiply<Steps<float>>(data<float>(weight), data<float>(x), target, n, I);
    else
      multiply_any<Steps>(weight, data<float>(x), target, n, I);
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def("linear(Tensor x, Tensor weight, int out_features, Tensor? scale=None, Tensor? plus=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) { library.impl("linear", TORCH_BOX(&linear)); }
