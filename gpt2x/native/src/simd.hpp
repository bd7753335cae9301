// Vectors of floats (GCC's vector extensions), and elementary functions that vectorise in loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "constants.hpp"

namespace gpt2x {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

// Horizontal sum: folds the vector in half repeatedly.
inline float lanes_sum(Vec v) {
#if defined(__AVX512F__)
  typedef float Half __attribute__((vector_size(32)));
  const Half half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX2__)
  const Vec half = v;
#endif
#if defined(__AVX2__)
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter sum = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#else
  Vec sum = v;
#endif
  sum += __builtin_shufflevector(sum, sum, 2, 3, 0, 1);
  return sum[0] + sum[1];
}

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// e^x within 2 ulp (the polynomial of Cephes' expf); below -87.3 it is e^-87.3, above 88.7 e^88.7; NaN stays NaN.
inline float fast_exp(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.7f ? 88.7f : x;
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // the nearest integer: 1.5 * 2^23 leaves no fraction
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return y * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// The tanh form of GELU: x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3), as gpt2x.ops.composed.GeluNew.
inline float gelu_new(float x) { return x * sigmoid(x * (x * x * kGeluCubic + kGeluSlope)); }

// As gpt2x.ops.composed.FastGelu.
inline float fast_gelu(float x) { return x * sigmoid(kFastGeluSlope * x); }

struct NormStats {
  float mean, scale;  // scale: the reciprocal standard deviation
};

// Layer normalisation of one row.
inline NormStats layer_norm_row(int64_t width, const float* row, const float* weight, const float* bias, float eps,
                                float* y) {
  float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < width; ++c) sum += row[c];
  const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < width; ++c) squares += (row[c] - mean) * (row[c] - mean);
  const float scale = 1.0f / std::sqrt(squares / width + eps);
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) y[c] = (row[c] - mean) * scale * weight[c] + bias[c];
  return {mean, scale};
}

}  // namespace gpt2x
