// Vectors of 16 fp32 lanes, written with the compiler's vector types, which lower to any instruction set.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

struct BFloat {
  uint16_t bits;
};

template <typename V>
inline V read(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat value) {
  const uint32_t word = uint32_t(value.bits) << 16;
  return read<float>(&word);
}
inline void store(float* to, float value) { *to = value; }
inline void store(BFloat* to, float value) {  // rounds to nearest, ties to even
  const uint32_t word = read<uint32_t>(&value);
  const bool is_nan = (word & 0x7fffffff) > 0x7f800000;  // rounding could turn one into an infinity
  to->bits = is_nan ? uint16_t(word >> 16) | 0x40 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }
inline void store(BFloat* to, Floats values) {
#ifdef __AVX512BF16__
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)values);
  std::memcpy(to, &halves, sizeof halves);
#else
  for (int lane = 0; lane < kLanes; ++lane) store(to + lane, values[lane]);
#endif
}
inline Floats load(const float* from) { return read<Floats>(from); }
inline Floats load(const BFloat* from) {
  return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
}

// a * b + c rounded once. Spelt out, since a compiler that may contract does so in one loop and not in another, and a
// result would depend on how many rows were given.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  typedef float Eight __attribute__((vector_size(32)));
  const auto half = [&](int at) {
    const auto of = [&](const Floats& v) { return read<__m256>(reinterpret_cast<const char*>(&v) + at); };
    return (Eight)_mm256_fmadd_ps(of(a), of(b), of(c));
  };
  const Eight halves[2] = {half(0), half(32)};
  return read<Floats>(halves);
#else
  return a * b + c;
#endif
}
inline Floats all(float value) { return value - Floats{}; }  // less zero: what the compiler may leave out

inline float total(Floats values) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  const char* at = reinterpret_cast<const char*>(&values);
  const Eight eight = read<Eight>(at) + read<Eight>(at + 32);
  at = reinterpret_cast<const char*>(&eight);
  const Four four = read<Four>(at) + read<Four>(at + 16);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The totals of 16 vectors, each summed in the order of `total`: halves are added, of two vectors side by side.
inline Floats totals(const Floats* v) {
  Floats eights[8], fours[4], twos[2];
  for (int i = 0; i < 8; ++i) {
    const Floats a = v[2 * i], b = v[2 * i + 1];
    eights[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const Floats a = eights[2 * i], b = eights[2 * i + 1];
    fours[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const Floats a = fours[2 * i], b = fours[2 * i + 1];
    twos[i] = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
              __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  return __builtin_shufflevector(twos[0], twos[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(twos[0], twos[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

inline int32_t total(Ints values) {
#ifdef __AVX512F__
  return _mm512_reduce_add_epi32((__m512i)values);
#endif
  int32_t sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += values[lane];
  return sum;
}
inline int32_t largest(Ints values) {
#ifdef __AVX512F__
  return _mm512_reduce_max_epi32((__m512i)values);
#endif
  int32_t found = values[0];
  for (int lane = 1; lane < kLanes; ++lane) found = std::max(found, values[lane]);
  return found;
}
inline Ints to_nearest(Floats x) {  // of |x| < 2^22; ties to even
  return __builtin_convertvector((x + 12582912.0f) - 12582912.0f, Ints);
}

inline Floats exponential(Floats x) {  // of x <= 0, to about one unit in the last place of fp32
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats scaled = x * 1.44269504f;
  const Ints whole = __builtin_convertvector(scaled - 0.5f, Ints);  // truncation of a negative number: to nearest
  const Floats part = __builtin_convertvector(whole, Floats);
  const Floats f = (x - part * 0.693359375f) + part * 2.12194440e-4f;
  Floats p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  return p * (Floats)((whole + 127) << 23);
}

inline int64_t blocks_of(int64_t outputs) { return (outputs + kLanes - 1) / kLanes; }
// Rows of this width that make a second thread worth waking.
inline int64_t grain(int64_t width) { return std::max<int64_t>(1, 32768 / width); }
inline int64_t round_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// A position outside would be read and written all the same.
inline void check_positions(const Tensor& positions, int64_t slots) {
  const int64_t* at = static_cast<const int64_t*>(positions.const_data_ptr());
  const bool fit = std::all_of(at, at + positions.numel(), [&](int64_t p) { return p >= 0 && p < slots; });
  STD_TORCH_CHECK(fit, "a position lies outside the KV cache or the rotary tables");
}
inline void check_cache(const Tensor& x, const Tensor& key, const Tensor& value) {
  const bool fit = key.scalar_type() == x.scalar_type() && value.scalar_type() == x.scalar_type() &&
                   key.size(0) == x.size(0) && value.size(0) == x.size(0);
  STD_TORCH_CHECK(fit, "the KV cache has another dtype or batch size than the states");
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace
