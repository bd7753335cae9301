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

// The first of the rows of a matrix (K, N) that part `index` of num_threads() sums: y is the sum of the parts' sums, in order.
inline int64_t part_begin(int64_t k, int64_t index) { return k * index / num_threads() / 4 * 4; }

inline int64_t part_end(int64_t k, int64_t index) { return index + 1 == num_threads() ? k : part_begin(k, index + 1); }

// y (R, NV vectors) += x (R, k) w (k, NV vectors)
template <int R, int NV, typename W>
inline void stream_tile(int64_t k, const float* x, int64_t ldx, const W* w, int64_t ldw, float* y, int64_t ldy) {
  constexpr int64_t kAhead = 24;  // rows of weights that are fetched before they are needed: they may lie pages apart
  Vec sum[R][NV];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[i][j] = load(y + i * ldy + j * kLanes);
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

// `stream_tile` for any number of rows
template <int NV, typename W>
void stream_tiles(int64_t m, int64_t k, const float* x, int64_t ldx, const W* w, int64_t ldw, float* y, int64_t ldy) {
  for (int64_t r = 0; r < m;) {
    const auto go = [&](auto rows) {
      stream_tile<decltype(rows)::value, NV>(k, x + r * ldx, ldx, w, ldw, y + r * ldy, ldy);
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
}

// y (m, n) of x (m, k) and weights (k, n), columns [begin, end) of it, for few rows
template <typename W>
void stream_columns(int64_t m, int64_t k, const float* x, const Weights<W>& weights, int64_t begin, int64_t end, float* y,
                    int64_t ldy) {
  constexpr int64_t kRows = 128;  // of weights that stay in the cache while all rows of x meet them
  const int64_t ldw = weights.stride(ldy), width = end - begin;
  static thread_local Workspace workspace;
  float* sums = workspace.get(m * kPanel);
  for (int64_t part = 0; part < num_threads(); ++part) {
    std::fill(sums, sums + m * kPanel, 0.0f);
    for (int64_t p = part_begin(k, part); p < part_end(k, part); p += kRows) {
      const int64_t count = std::min(kRows, part_end(k, part) - p);
      const W* w = weights.column(begin, k) + p * ldw;
      int64_t c = 0;
      for (; c + kTileColumns <= width; c += kTileColumns)
        stream_tiles<kTileVecs>(m, count, x + p, k, w + c, ldw, sums + c, kPanel);
      for (; c < width; ++c)  // a width that is no multiple of a tile
        for (int64_t r = 0; r < m; ++r)
          for (int64_t q = 0; q < count; ++q)
            sums[r * kPanel + c] = std::fma(x[r * k + p + q], to_float(w[q * ldw + c]), sums[r * kPanel + c]);
    }
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < width; ++c)
        y[r * ldy + begin + c] = part == 0 ? sums[r * kPanel + c] : y[r * ldy + begin + c] + sums[r * kPanel + c];
  }
}

// As stream_columns for one row of x and fp32 weights, all columns: each thread reads its part of the rows of weights from one
// end to the other, as memory is read fastest.
inline void stream_row(int64_t k, int64_t n, const float* x, const float* w, float* y) {
  const int64_t parts = num_threads();
  static Workspace workspace;
  float* sums = workspace.get(parts * n);
  parallel_for(parts, [&](int64_t part) {
    float* sum = sums + part * n;
    std::fill(sum, sum + n, 0.0f);
    int64_t p = part_begin(k, part);
    for (; p + 4 <= part_end(k, part); p += 4) {
      const float *rows = w + p * n, x0 = x[p], x1 = x[p + 1], x2 = x[p + 2], x3 = x[p + 3];
      int64_t c = 0;
      for (; c + kLanes <= n; c += kLanes) {
        const float* at = rows + c;
        for (int64_t q = 0; q < 4; ++q) __builtin_prefetch(at + (4 + q) * n);
        Vec total = load(sum + c);
        total += x0 * load(at);
        total += x1 * load(at + n);
        total += x2 * load(at + 2 * n);
        total += x3 * load(at + 3 * n);
        store(sum + c, total);
      }
      for (; c < n; ++c)
        for (int64_t q = 0; q < 4; ++q) sum[c] = std::fma(x[p + q], rows[q * n + c], sum[c]);
    }
    for (; p < part_end(k, part); ++p)
      for (int64_t c = 0; c < n; ++c) sum[c] = std::fma(x[p], w[p * n + c], sum[c]);
  });
  for (int64_t c = 0; c < n; ++c) {
    float total = sums[c];
    for (int64_t part = 1; part < parts; ++part) total += sums[part * n + c];
    y[c] = total;
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
