// Products of a few rows with weights that are read once from memory, in fp32, bf16 or int8.
//
// Every sum runs over its terms in the same order for any number of rows. So a token's values do not depend on how many tokens are
// computed with it, which speculative decoding relies on.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "constants.hpp"
#include "gemm.hpp"
#include "onednn.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

namespace gpt2x {


inline Vec load_weights(const float* p) { return load(p); }

// Intrinsics, because GCC 12 converts vectors of bytes one by one.
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

// A matrix (K, N) as the decoder reads it. fp32: the model's own, row-major. bf16 and int8: a copy in panels (N / kPanel, K, kPanel),
// read from one end to the other; int8 with one factor per output.
template <typename W>
struct Weights {
  const W* data;
  const float* scales;  // only for int8

  const W* panel(int64_t index, int64_t k) const { return data + index * k * kPanel; }

  float scale(int64_t output) const {
    if constexpr (std::is_same_v<W, int8_t>) return scales[output];
    return 1.0f;
  }
};

// y (R, NV vectors) += x (R, k) w (k, NV vectors). If `ahead` is not null, memory from there on is prefetched meanwhile.
template <int R, int NV, typename W>
inline void stream_tile(int64_t k, const float* x, int64_t ldx, const W* w, int64_t ldw, float* y, int64_t ldy, const W* ahead) {
  Vec sum[R][NV];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[i][j] = load(y + i * ldy + j * kLanes);
  for (int64_t p = 0; p < k; ++p) {
    if (ahead != nullptr)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) __builtin_prefetch(ahead + (p * NV + j) * kLanes, 0, 2);
    Vec right[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) right[j] = load_weights(w + p * ldw + j * kLanes);
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

// y (m, n) += x (m, k) w (k, n), for a k so small that these rows of weights stay in the cache
template <typename W>
void stream_tiles(int64_t m, int64_t k, const float* x, int64_t ldx, const W* w, int64_t ldw, int64_t n, float* y, int64_t ldy,
                  const W* next) {
  constexpr int kHalf = kTileVecs / 2;  // 8 rows fill the registers with half a tile's columns
  int64_t c = 0;
  for (; c + kTileColumns <= n; c += kTileColumns)
    for (int64_t r = 0; r < m;) {
      const auto go = [&](auto rows, auto vecs) {
        constexpr int R = decltype(rows)::value, NV = decltype(vecs)::value;
        for (int64_t d = c; d < c + kTileColumns; d += NV * kLanes)
          stream_tile<R, NV>(k, x + r * ldx, ldx, w + d, ldw, y + r * ldy + d, ldy, r > 0 || next == nullptr ? nullptr : next + d * k);
        r += R;
      };
      const std::integral_constant<int, kTileVecs> all;
      switch (m - r) {
        case 1: go(std::integral_constant<int, 1>{}, all); break;
        case 2: go(std::integral_constant<int, 2>{}, all); break;
        case 3: go(std::integral_constant<int, 3>{}, all); break;
        case 4: go(std::integral_constant<int, 4>{}, all); break;
        case 5: go(std::integral_constant<int, 5>{}, all); break;
        case 6: go(std::integral_constant<int, 6>{}, all); break;
        case 7: go(std::integral_constant<int, 7>{}, std::integral_constant<int, kHalf>{}); break;
        default: go(std::integral_constant<int, 8>{}, std::integral_constant<int, kHalf>{}); break;
      }
    }
  for (; c < n; ++c)  // the rest of a width that is not a multiple of a tile
    for (int64_t r = 0; r < m; ++r)
      for (int64_t p = 0; p < k; ++p) y[r * ldy + c] = std::fma(x[r * ldx + p], to_float(w[p * ldw + c]), y[r * ldy + c]);
}

// y (m, n) = x (m, k) w (k, n) in fp32, for few rows of x. Each thread reads its part of the rows of weights from one end to the
// other, which is how memory is read fastest. y sums the threads' parts in order.
inline void stream_dense(int64_t m, int64_t k, int64_t n, const float* x, const float* w, float* y) {
  constexpr int64_t kRows = 32;  // of weights, which stay in the cache while all rows of x use them
  const int64_t parts = num_threads();
  const bool is_ahead = m > 6;  // with less work per row of weights, the processor's own prefetching is faster
  static Workspace workspace;
  float* sums = workspace.get(parts * m * n);
  parallel_for(parts, [&](int64_t part) {
    float* sum = sums + part * m * n;
    std::fill(sum, sum + m * n, 0.0f);
    const int64_t end = k * (part + 1) / parts;
    for (int64_t p = k * part / parts; p < end; p += kRows)
      stream_tiles(m, std::min(kRows, end - p), x + p, k, w + p * n, n, n, sum, n, is_ahead ? w + (p + kRows) * n : nullptr);
  });
  std::copy_n(sums, m * n, y);
  for (int64_t part = 1; part < parts; ++part) {
    const float* sum = sums + part * m * n;
#pragma omp simd
    for (int64_t i = 0; i < m * n; ++i) y[i] += sum[i];
  }
}

// stream_dense for a copy in panels, each of which is read by one thread.
template <typename W>
void stream_panels(int64_t m, int64_t k, int64_t n, const float* x, const Weights<W>& weights, float* y) {
  constexpr int64_t kRows = 128, kAhead = 24;
  parallel_for((n + kPanel - 1) / kPanel, [&](int64_t index) {
    static thread_local Workspace workspace;
    float* sums = workspace.get(m * kPanel);
    std::fill(sums, sums + m * kPanel, 0.0f);
    const W* w = weights.panel(index, k);
    for (int64_t p = 0; p < k; p += kRows)
      stream_tiles<W>(m, std::min(kRows, k - p), x + p, k, w + p * kPanel, kPanel, kPanel, sums, kPanel, w + (p + kAhead) * kPanel);
    const int64_t begin = index * kPanel, width = std::min(kPanel, n - begin);
    for (int64_t r = 0; r < m; ++r) std::copy_n(sums + r * kPanel, width, y + r * n + begin);
  });
}

template <int R, int V, typename W>
inline void dot_tile(int64_t k, const float* x, int64_t ldx, const W* w, int64_t ldw, float* y, int64_t ldy) {
  constexpr int64_t kAheadBytes = 8192;
  Vec sum[R][V] = {};
  int64_t p = 0;
  for (; p + kLanes <= k; p += kLanes) {
    Vec right[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      right[j] = load_weights(w + j * ldw + p);
      __builtin_prefetch(reinterpret_cast<const char*>(w + j * ldw + p) + kAheadBytes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vec left = load(x + i * ldx + p);
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      float total = lanes_sum(sum[i][j]);
      for (int64_t rest = p; rest < k; ++rest) total += x[i * ldx + rest] * to_float(w[j * ldw + rest]);
      y[i * ldy + j] = total;
    }
}

// Columns [begin, end) of y (m, n) = x (m, k) transpose of w (n, k), for few rows of x
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
