// Products of a few rows with fp32 weights that are read once from memory.
//
// Every sum runs over its terms in the same order for any number of rows. So a token's values do not depend on how many tokens are
// computed with it, which speculative decoding relies on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "parallel.hpp"
#include "simd.hpp"
#include "workspace.hpp"

namespace gpt2x {

// Weights are read at this many places at a time. A processor prefetches only within a page, but from several pages at once.
constexpr int kStreams = 8;
constexpr int64_t kAhead = 256;  // floats; from 128 to 1024 are equally fast

// y (R, n) += x (R, kStreams) w, where row s of w begins at w + s * ldw. `ahead` is added to the places that are prefetched.
template <int R>
inline void add_rows(int64_t n, const float (*x)[kStreams], const float* w, int64_t ldw, float* y, int64_t ldy) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    Vec rows[kStreams];
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const float* from = w + s * ldw + c;
      __builtin_prefetch(from + kAhead);
      rows[s] = load(from);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      Vec sum = load(y + i * ldy + c);
#pragma GCC unroll 8
      for (int s = 0; s < kStreams; ++s) sum += x[i][s] * rows[s];
      store(y + i * ldy + c, sum);
    }
  }
  for (; c < n; ++c)
    for (int i = 0; i < R; ++i)
      for (int s = 0; s < kStreams; ++s) y[i * ldy + c] = std::fma(x[i][s], w[s * ldw + c], y[i * ldy + c]);
}

// y (m, n) += x (m, k) w (k, n): in kStreams parts of the rows of w, side by side, then the rest
inline void add_product(int64_t m, int64_t k, int64_t n, const float* x, int64_t ldx, const float* w, float* y) {
  constexpr int64_t kRows = 8, kSteps = 4;  // with more rows of x, this many steps stay in the cache while all of them pass
  const int64_t part = k / kStreams, steps = m > kRows ? kSteps : 1;
  for (int64_t start = 0; start < part; start += steps)
    for (int64_t r = 0; r < m; r += kRows)
      for (int64_t p = start; p < std::min(part, start + steps); ++p) {
        const int64_t count = std::min(kRows, m - r);
        float factors[kRows][kStreams];
        for (int64_t i = 0; i < count; ++i)
          for (int s = 0; s < kStreams; ++s) factors[i][s] = x[(r + i) * ldx + s * part + p];
        const auto go = [&](auto rows) { add_rows<decltype(rows)::value>(n, factors, w + p * n, part * n, y + r * n, n); };
        switch (count) {
          case 1: go(std::integral_constant<int, 1>{}); break;
          case 2: go(std::integral_constant<int, 2>{}); break;
          case 3: go(std::integral_constant<int, 3>{}); break;
          case 4: go(std::integral_constant<int, 4>{}); break;
          case 5: go(std::integral_constant<int, 5>{}); break;
          case 6: go(std::integral_constant<int, 6>{}); break;
          case 7: go(std::integral_constant<int, 7>{}); break;
          default: go(std::integral_constant<int, 8>{}); break;
        }
      }
  for (int64_t p = part * kStreams; p < k; ++p)
    for (int64_t r = 0; r < m; ++r) {
      const float factor = x[r * ldx + p];
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) y[r * n + c] += factor * w[p * n + c];
    }
}

// sums (threads, m, n): each thread's part of x (m, k) w (k, n); their sum, in order, is the product.
inline float* stream_dense(int64_t m, int64_t k, int64_t n, const float* x, const float* w) {
  const int64_t parts = num_threads();
  static Workspace workspace;
  float* sums = workspace.get(parts * m * n);
  parallel_for(parts, [&](int64_t part) {
    float* sum = sums + part * m * n;
    std::fill(sum, sum + m * n, 0.0f);
    const int64_t begin = k * part / parts, end = k * (part + 1) / parts;
    add_product(m, end - begin, n, x + begin, k, w + begin * n, sum);
  });
  return sums;
}

// y (R, V) = x (R, k) transpose of V rows of w, which are ldw apart; y's are `step` apart
template <int R, int V>
inline void dot_tile(int64_t k, const float* x, int64_t ldx, const float* w, int64_t ldw, float* y, int64_t ldy, int64_t step) {
  Vec sum[R][V] = {};
  int64_t p = 0;
  for (; p + kLanes <= k; p += kLanes) {
    Vec right[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      right[j] = load(w + j * ldw + p);
      __builtin_prefetch(w + j * ldw + p + kAhead);
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
      for (int64_t rest = p; rest < k; ++rest) total += x[i * ldx + rest] * w[j * ldw + rest];
      y[i * ldy + j * step] = total;
    }
}

// y (m, count) = x (m, k) transpose of w (count, k), for few rows of x. Rows of w are read from several parts side by side.
inline void stream_rows(int64_t m, int64_t k, int64_t count, const float* x, const float* w, float* y, int64_t ldy) {
  constexpr int kRowParts = kLanes == 16 ? 8 : 4;
  const int64_t part = count / kRowParts;
  for (int64_t v = 0; v < part; ++v)
    for (int64_t r = 0; r < m; r += 2) {
      if (r + 2 <= m) dot_tile<2, kRowParts>(k, x + r * k, k, w + v * k, part * k, y + r * ldy + v, ldy, part);
      else dot_tile<1, kRowParts>(k, x + r * k, k, w + v * k, part * k, y + r * ldy + v, ldy, part);
    }
  for (int64_t v = part * kRowParts; v < count; ++v)
    for (int64_t r = 0; r < m; ++r) dot_tile<1, 1>(k, x + r * k, k, w + v * k, k, y + r * ldy + v, ldy, 1);
}

}  // namespace gpt2x
