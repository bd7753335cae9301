// Products of a few rows with weights that are read once from memory, in fp32, bf16 or int8.
//
// Every sum runs over its terms in one order whatever the number of rows, so that a token's values do not depend on how many
// tokens are computed with it: speculative decoding compares them.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "gemm.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

namespace gpt2x {

struct Bf16 {
  uint16_t bits;
};

inline Vec load_weights(const float* p) { return load(p); }

// By intrinsics: GCC 12 converts vectors of bytes one by one.
inline Vec load_weights(const Bf16* p) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#else
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Vec>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#endif
}

inline Vec load_weights(const int8_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#else
  return reinterpret_cast<Vec>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#endif
}

inline float to_float(float w) { return w; }
inline float to_float(Bf16 w) {
  const uint32_t bits = static_cast<uint32_t>(w.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float to_float(int8_t w) { return w; }

constexpr int64_t kPanel = 64;  // columns that stand together in a matrix of which the decoder has a copy of its own

// A matrix (K, N) as a decoder reads it: fp32 where the model has it; else a copy in panels (N / kPanel, K, kPanel), which is
// read from one end to the other, and of int8 a factor for each output.
template <typename W>
struct Weights {
  const W* data;
  const float* scales;  // int8 alone

  static constexpr bool kIsPacked = !std::is_same_v<W, float>;
  static int64_t stride(int64_t n) { return kIsPacked ? kPanel : n; }
  const W* column(int64_t c, int64_t k) const { return data + (kIsPacked ? c / kPanel * k * kPanel + c % kPanel : c); }

  float scale(int64_t output) const {
    if constexpr (std::is_same_v<W, int8_t>) return scales[output];
    return 1.0f;
  }
};

template <int R, int NV, typename W>
inline void stream_tile(int64_t k, const float* x, int64_t ldx, const W* w, int64_t ldw, float* y, int64_t ldy) {
  constexpr int64_t kAhead = 24;  // rows of weights fetched before they are needed: they lie pages apart
  Vec sum[R][NV] = {};
  for (int64_t p = 0; p < k; ++p) {
    const W* row = w + p * ldw;
    for (int64_t line = 0; line < static_cast<int64_t>(NV * kLanes * sizeof(W)); line += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(row + kAhead * ldw) + line);
    Vec right[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) right[j] = load_weights(row + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const float left = x[i * ldx + p];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) store(y + i * ldy + j * kLanes, sum[i][j]);
}

// y (m, n) of x (m, k) and w (k, n), columns [begin, end) of it, for few rows
template <typename W>
void stream_columns(int64_t m, int64_t k, const float* x, const Weights<W>& weights, int64_t begin, int64_t end, float* y,
                    int64_t ldy) {
  const int64_t ldw = weights.stride(ldy);
  int64_t c = begin;
  for (; c + kTileColumns <= end; c += kTileColumns)
    for (int64_t r = 0; r < m;) {
      const auto go = [&](auto rows) {
        stream_tile<decltype(rows)::value, kTileVecs>(k, x + r * k, k, weights.column(c, k), ldw, y + r * ldy + c, ldy);
        r += decltype(rows)::value;
      };
      switch (std::min<int64_t>(m - r, m - r == 8 || m - r == 7 ? 4 : 6)) {
        case 1: go(std::integral_constant<int, 1>{}); break;
        case 2: go(std::integral_constant<int, 2>{}); break;
        case 3: go(std::integral_constant<int, 3>{}); break;
        case 4: go(std::integral_constant<int, 4>{}); break;
        case 5: go(std::integral_constant<int, 5>{}); break;
        default: go(std::integral_constant<int, 6>{}); break;
      }
    }
  for (; c < end; ++c)  // widths that are no multiple of a tile
    for (int64_t r = 0; r < m; ++r) {
      const W* column = weights.column(c, k);
      float sum = 0.0f;
      for (int64_t p = 0; p < k; ++p) sum += x[r * k + p] * to_float(column[p * ldw]);
      y[r * ldy + c] = sum;
    }
}

template <int R, int V, typename W>
inline void dot_tile(int64_t k, const float* x, int64_t ldx, const W* w, int64_t ldw, float* y, int64_t ldy) {
  Vec sum[R][V] = {};
  int64_t p = 0;
  for (; p + kLanes <= k; p += kLanes) {
    Vec right[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) right[j] = load_weights(w + j * ldw + p);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vec left = load(x + i * ldx + p);
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < V; ++j) {
      float total = 0.0f;
      for (int lane = 0; lane < kLanes; ++lane) total += sum[i][j][lane];
      for (int64_t rest = p; rest < k; ++rest) total += x[i * ldx + rest] * to_float(w[j * ldw + rest]);
      y[i * ldy + j] = total;
    }
}

// y (m, n) of x (m, k) and the transpose of w (n, k), rows [begin, end) of it, for few rows of x
template <typename W>
void stream_rows(int64_t m, int64_t k, const float* x, const W* w, int64_t begin, int64_t end, float* y, int64_t ldy) {
  constexpr int kRows = 4;
  for (int64_t v = begin; v < end;) {
    const bool is_full = v + kRows <= end;
    for (int64_t r = 0; r < m;) {
      const auto go = [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        if (is_full) dot_tile<R, kRows>(k, x + r * k, k, w + v * k, k, y + r * ldy + v, ldy);
        else dot_tile<R, 1>(k, x + r * k, k, w + v * k, k, y + r * ldy + v, ldy);
        r += R;
      };
      switch (std::min<int64_t>(m - r, 4)) {
        case 1: go(std::integral_constant<int, 1>{}); break;
        case 2: go(std::integral_constant<int, 2>{}); break;
        case 3: go(std::integral_constant<int, 3>{}); break;
        default: go(std::integral_constant<int, 4>{}); break;
      }
    }
    v += is_full ? kRows : 1;
  }
}

}  // namespace gpt2x
