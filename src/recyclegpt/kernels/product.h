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
// two neighbouring inputs. In fp32 the first input's 16 come first; in bf16 the two weights of an output are neighbours,
// as AVX512-BF16 wants them. An int8 weight is (O/16, I/4, 64), bytes w + 128 with the four weights of an output side by
// side, as AVX512-VNNI wants them; it meets rows in int8 with a scale for each group of 32 inputs, as in llama.cpp's Q8_0.

#pragma once

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
struct PairSteps {  // bf16 against rows in bf16: one instruction multiplies and adds both inputs
  using X = BFloat;
  using Sum = __m512;
  using Weights = __m512bh;
  static Weights weights(const BFloat* step) { return (__m512bh)_mm512_loadu_si512(step); }
  static void add(Sum& sum, Weights w, const BFloat* x) {
    sum = _mm512_dpbf16_ps(sum, w, (__m512bh)_mm512_set1_epi32(read<int32_t>(x)));
  }
  static Floats value(Sum sum) { return (Floats)sum; }
};
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

// Calls part(N, row) for all rows: kTokens at a time, then once for those that are left.
template <int N = kTokens, typename F>
void in_tiles(int64_t row, int64_t n, const F& part) {
  for (; n - row >= N; row += N) part(std::integral_constant<int, N>(), row);
  if constexpr (N > 1)
    if (row < n) in_tiles<N - 1>(row, n, part);
}

constexpr int64_t kGroup = 32;  // inputs of a row that share a scale

// Rows in int8, padded with zeros to whole groups: x = scale * bytes. `less` is what the 128 in each weight adds.
struct ByteRows {
  int64_t I = 0, groups = 0;
  std::vector<int8_t> bytes;
  std::vector<float> scale;
  std::vector<int32_t> less;

  template <typename X>
  void set(const X* x, int64_t n, int64_t width) {
    groups = (width + kGroup - 1) / kGroup, I = groups * kGroup;
    bytes.resize(n * I), scale.resize(n * groups), less.resize(n * groups);
    for (int64_t row = 0; row < n; ++row)
      for (int64_t g = 0; g < groups; ++g) {
        const X* from = x + row * width + g * kGroup;
        X padded[kGroup] = {};
        const int64_t count = std::min(kGroup, width - g * kGroup);
        if (count < kGroup) std::copy(from, from + count, padded), from = padded;
        quantise(load(from), load(from + kLanes), row * groups + g);
      }
  }

 private:
  void quantise(Floats low, Floats high, int64_t group) {
    const Ints sizes_low = (Ints)low & 0x7fffffff, sizes_high = (Ints)high & 0x7fffffff;  // in order as fp32 numbers
    const int32_t bits = largest(sizes_low > sizes_high ? sizes_low : sizes_high);
    const float size = read<float>(&bits);
    const bool finite = bits < 0x7f800000;
    scale[group] = finite ? size / 127.0f : NAN;  // so the result is none either
    const float inverse = finite && size > 1e-35f ? 127.0f / size : 0.0f;  // of less it would be infinite
    const Ints whole[2] = {to_nearest(finite ? low * inverse : Floats{}), to_nearest(finite ? high * inverse : Floats{})};
    for (int half = 0; half < 2; ++half) {
      const Bytes narrow = __builtin_convertvector(whole[half], Bytes);
      std::memcpy(bytes.data() + group * kGroup + half * kLanes, &narrow, sizeof narrow);
    }
    less[group] = -128 * total(whole[0] + whole[1]);
  }
};

// sum + the products of 16 outputs' next four weights with a row's next four inputs.
inline Ints dot(Ints sum, const uint8_t* w, const int8_t* x) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(w), _mm512_set1_epi32(read<int32_t>(x)));
#else
  const Words weights = read<Words>(w);
  for (int k = 0; k < 4; ++k) sum += (Ints)((weights >> (8 * k)) & 0xffu) * int32_t(x[k]);
  return sum;
#endif
}

// As `tile`: sums in whole numbers within a group, in fp32 over the groups, in one order for any N.
template <typename Y, int R, int N>
void byte_tile(const uint8_t* w, const ByteRows& x, const Target<Y>& target, int64_t row, int64_t o) {
  Floats sum[R][N] = {};
  for (int64_t g = 0; g < x.groups; ++g) {
    Ints whole[R][N];
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r) whole[r][n] = x.less[(row + n) * x.groups + g] - Ints{};
    for (int64_t i = g * kGroup; i < (g + 1) * kGroup; i += 4) {
      for (int r = 0; r < R; ++r) __builtin_prefetch(w + (r * x.I + i) * kLanes + 2048);
      for (int n = 0; n < N; ++n)
        for (int r = 0; r < R; ++r)
          whole[r][n] = dot(whole[r][n], w + (r * x.I + i) * kLanes, x.bytes.data() + (row + n) * x.I + i);
    }
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r)
        sum[r][n] = fused(__builtin_convertvector(whole[r][n], Floats), all(x.scale[(row + n) * x.groups + g]), sum[r][n]);
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n)
      if (o + r * kLanes < target.O) target.put(row + n, o + r * kLanes, sum[r][n]);
}

// n rows of x, made ready for weights W, and their products with blocks b to b + R of 16 outputs.
template <typename E, typename W>
class Rows {
#ifdef __AVX512BF16__
  using P = std::conditional_t<std::is_same_v<E, BFloat>, PairSteps, Steps<W>>;
#else
  using P = Steps<W>;
#endif
  std::vector<typename P::X> wide;
  const typename P::X* x = nullptr;
  int64_t n = 0, I = 0;

 public:
  void set(const E* rows, int64_t count, int64_t width) {
    n = count, I = width;
    if constexpr (std::is_same_v<E, typename P::X>) x = rows;
    else {
      wide.resize(n * I);
      for (int64_t i = 0; i < n * I; ++i) wide[i] = to_float(rows[i]);
      x = wide.data();
    }
  }
  template <int R>
  void times(const W* w, int64_t b, const Target<E>& target) const {
    in_tiles(0, n, [&](auto N, int64_t row) {
      tile<P, W, E, R, N.value>(w + b * kLanes * I, x, target, row, b * kLanes, I);
    });
  }
};

template <typename E>
class Rows<E, uint8_t> {
  ByteRows rows;
  int64_t n = 0;

 public:
  void set(const E* x, int64_t count, int64_t width) { rows.set(x, n = count, width); }
  template <int R>
  void times(const uint8_t* w, int64_t b, const Target<E>& target) const {
    in_tiles(0, n, [&](auto N, int64_t row) {
      byte_tile<E, R, N.value>(w + b * kLanes * rows.I, rows, target, row, b * kLanes);
    });
  }
};

// The same for blocks `from` to `to`, as many together as registers hold.
template <typename E, typename W>
void times_blocks(const Rows<E, W>& rows, const W* w, int64_t from, int64_t to, const Target<E>& target) {
  for (; from + kBlocks <= to; from += kBlocks) rows.template times<kBlocks>(w, from, target);
  for (; from < to; ++from) rows.template times<1>(w, from, target);
}

}  // namespace
