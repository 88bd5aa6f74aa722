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
  static void add(Sum& sum, const Weights& w, const float* x) { sum += w.even * x[0], sum += w.odd * x[1]; }
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

template <typename P, typename W, typename Y, int R, int N>
void tile(const W* w, const typename P::X* x, const float* scale, Y* y, int64_t I, int64_t O, int64_t valid) {
  typename P::Sum sum[R][N] = {};
  const int64_t block = I * kLanes;
  for (int64_t i = 0; i < I; i += 2) {
    typename P::Weights weights[R];
    for (int r = 0; r < R; ++r) {
      const W* step = w + r * block + i * kLanes;
      weights[r] = P::weights(step);
      __builtin_prefetch(step + 2048 / sizeof(W));
    }
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r) P::add(sum[r][n], weights[r], x + n * I + i);
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      Floats values = P::value(sum[r][n]);
      if (scale) values *= load(scale + r * kLanes);
      for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, valid - r * kLanes); ++lane)
        store(y + n * O + r * kLanes + lane, values[lane]);
    }
}

// R blocks of 16 outputs for the n rows left, N at a time, then fewer.
template <typename P, typename W, typename Y, int R, int N>
void rows(const W* w, const typename P::X* x, const float* s, Y* y, int64_t n, int64_t I, int64_t O, int64_t valid) {
  for (; n >= N; n -= N, x += N * I, y += N * O) tile<P, W, Y, R, N>(w, x, s, y, I, O, valid);
  if constexpr (N > 1)
    if (n) rows<P, W, Y, R, N - 1>(w, x, s, y, n, I, O, valid);
}

template <typename P, typename W, typename Y>
void multiply(const W* w, const typename P::X* x, const float* scale, Y* y, int64_t n, int64_t I, int64_t O) {
  const int64_t blocks = (O + kLanes - 1) / kLanes;
  const int64_t grain = std::max<int64_t>(1, 16384 / I);  // a thread is worth waking for this much
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to;) {
      const float* its_scale = scale ? scale + b * kLanes : nullptr;
      const W* its_weight = w + b * kLanes * I;
      const int64_t valid = O - b * kLanes;
      if (to - b >= kBlocks) {
        rows<P, W, Y, kBlocks, kTokens>(its_weight, x, its_scale, y + b * kLanes, n, I, O, valid);
        b += kBlocks;
      } else {
        rows<P, W, Y, 1, kTokens>(its_weight, x, its_scale, y + b * kLanes, n, I, O, valid);
        ++b;
      }
    }
  });
}

template <template <typename> typename P, typename X, typename Y>
void multiply_any(const Tensor& weight, const X* x, const float* scale, Y* y, int64_t n, int64_t I, int64_t O) {
  if (weight.scalar_type() == ScalarType::Char) multiply<P<int8_t>>(data<int8_t>(weight), x, scale, y, n, I, O);
  else multiply<P<BFloat>>(data<BFloat>(weight), x, scale, y, n, I, O);
}

// y (n, O) = x (n, I) times the packed weight, times scale (16 O/16) where one is given. The caller checks the shapes.
Tensor linear(const Tensor& x, const Tensor& weight, int64_t O, const std::optional<Tensor>& scale) {
  const int64_t n = x.size(0), I = x.size(1);
  Tensor y = torch::stable::new_empty(x, {n, O}, x.scalar_type());
  const float* s = scale ? data<float>(*scale) : nullptr;
  if (x.scalar_type() == ScalarType::BFloat16) {
    BFloat* to = mutable_data<BFloat>(y);
#ifdef __AVX512BF16__
    multiply_any<PairSteps>(weight, data<BFloat>(x), s, to, n, I, O);
#else
    std::vector<float> wide(n * I);
    for (int64_t i = 0; i < n * I; ++i) wide[i] = to_float(data<BFloat>(x)[i]);
    multiply_any<Steps>(weight, wide.data(), s, to, n, I, O);
#endif
  } else {
    float* to = mutable_data<float>(y);
    if (weight.scalar_type() == ScalarType::Float)
      multiply<Steps<float>>(data<float>(weight), data<float>(x), s, to, n, I, O);
    else
      multiply_any<Steps>(weight, data<float>(x), s, to, n, I, O);
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(recyclegpt, library) {
  library.def("linear(Tensor x, Tensor weight, int out_features, Tensor? scale=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recyclegpt, CPU, library) { library.impl("linear", TORCH_BOX(&linear)); }
