// Narrow weights in panels, and products of a few rows with them, which read every weight once.
//
// A panel has the weights of kPanel outputs, for all inputs, in the order of reading. Inputs and outputs are padded with zeros.
//   bf16  [inputs / 2][kPanel][2]: oneDNN's format BA16a64b2a, inputs padded to 32
//   int8  [inputs / 4][kPanel][4]: oneDNN's format BA16a64b4a, inputs padded to 64
//   int4  [inputs / 8][kPanel][4]: in a byte, input i in the low half and input i + 4 in the high half, plus 8; inputs padded to
//         64. kGroup inputs of an output have a common scale, fp16, in panels [inputs / kGroup][kPanel].
//
// The activations of int8 and int4 are rounded to 14 bits per row (kLevels), in two bytes: products of bytes are exact, and so are
// their sums, in whatever order. bf16 weights meet fp32 activations, and sums run over inputs in order. So a token's values do not
// depend on how many tokens are computed with it, which speculative decoding relies on.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "constants.hpp"
#include "onednn.hpp"
#include "simd.hpp"

namespace gpt2x {

struct Int4 {
  uint8_t bits;  // two weights
};

constexpr int64_t kInputs = 64;    // a multiple of the inputs that any panel has
constexpr int kLevels = 8191;      // an activation is rounded to -kLevels..kLevels: 128 high + low, low in 0..127, high in -64..63
constexpr int kOffset = 64;        // added to `high` for int8, since the instructions multiply unsigned by signed bytes

// ---- vectors of integers

#if defined(__AVX512F__)
using Ints = __m512i;
inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline void store_ints(void* p, Ints v) { _mm512_storeu_si512(p, v); }
inline Ints same_ints(int32_t value) { return _mm512_set1_epi32(value); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints times_128(Ints a) { return _mm512_slli_epi32(a, 7); }
inline Ints low_halves(Ints a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline Ints high_halves(Ints a) { return _mm512_and_si512(_mm512_srli_epi32(a, 4), _mm512_set1_epi8(15)); }
inline Vec to_floats(Ints a) { return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(a)); }
inline Vec even_bf16(Ints a) { return reinterpret_cast<Vec>(_mm512_slli_epi32(a, 16)); }
inline Vec odd_bf16(Ints a) { return reinterpret_cast<Vec>(_mm512_and_si512(a, _mm512_set1_epi32(0xFFFF0000))); }
inline Vec load_fp16(const uint16_t* p) {
  return reinterpret_cast<Vec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline Ints madd(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }
inline Ints pairs_dot(Ints u, Ints s) { return madd(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)); }
inline Ints load_widened(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Ints same_longs(int64_t value) { return _mm512_set1_epi64(value); }
#else
using Ints = __m256i;
inline Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_ints(void* p, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline Ints same_ints(int32_t value) { return _mm256_set1_epi32(value); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints times_128(Ints a) { return _mm256_slli_epi32(a, 7); }
inline Ints low_halves(Ints a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
inline Ints high_halves(Ints a) { return _mm256_and_si256(_mm256_srli_epi32(a, 4), _mm256_set1_epi8(15)); }
inline Vec to_floats(Ints a) { return reinterpret_cast<Vec>(_mm256_cvtepi32_ps(a)); }
inline Vec even_bf16(Ints a) { return reinterpret_cast<Vec>(_mm256_slli_epi32(a, 16)); }
inline Vec odd_bf16(Ints a) { return reinterpret_cast<Vec>(_mm256_and_si256(a, _mm256_set1_epi32(0xFFFF0000))); }
inline Vec load_fp16(const uint16_t* p) {
  return reinterpret_cast<Vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Ints madd(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }
inline Ints pairs_dot(Ints u, Ints s) { return madd(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)); }
inline Ints load_widened(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Ints same_longs(int64_t value) { return _mm256_set1_epi64x(value); }
#endif

// sum + the sums of four products of unsigned with signed bytes. `pairs_dot` adds two products in 16 bits: they must fit.
template <bool kVnni>
inline Ints add_dot(Ints sum, Ints u, Ints s) {
  if constexpr (kVnni) {  // in assembler, since the library is compiled for processors without it
#if defined(__AVX512F__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(s));
#endif
    return sum;
  }
  return add(sum, pairs_dot(u, s));
}

// Whether the processor has these instructions, and the variable that limits oneDNN's does not forbid them.
inline bool has_vnni() {
#if defined(__AVX512F__)
  static const bool exists = __builtin_cpu_supports("avx512vnni");
#else
  static const bool exists = __builtin_cpu_supports("avxvnni");
#endif
  static const bool is_allowed = [] {
    const char* most = std::getenv("ONEDNN_MAX_CPU_ISA");
    for (const char* without : {"SSE41", "AVX", "AVX2", "AVX512_CORE"})
      if (most != nullptr && std::strcmp(most, without) == 0) return false;
    return true;
  }();
  return exists && is_allowed;
}

// ---- activations

// From activations of a row to levels, and back; 0 for a row of zeros, and back NaN, which everything shows, if one is not finite.
struct RowScale {
  float up, down;

  RowScale(int64_t k, const float* x) {
    float largest = 0.0f, total = 0.0f;
#pragma omp simd reduction(max : largest) reduction(+ : total)
    for (int64_t p = 0; p < k; ++p) {
      const float size = std::fabs(x[p]);
      largest = size > largest ? size : largest;
      total += x[p];
    }
    const bool is_finite = std::isfinite(total) && largest < 1e37f, is_zero = largest < 1e-30f;
    up = is_finite && !is_zero ? kLevels / largest : 0.0f;
    down = !is_finite ? std::numeric_limits<float>::quiet_NaN() : is_zero ? 0.0f : largest / kLevels;
  }

  int32_t level(float x) const { return static_cast<int32_t>((x * up + 12582912.0f) - 12582912.0f); }  // the nearest
};

// A row of activations x (k) as scale * (128 high + low) -> scale; `offset` is added to high.
inline float round_row(int64_t k, const float* x, int offset, uint8_t* high, uint8_t* low) {
  const RowScale scale(k, x);
#pragma omp simd
  for (int64_t p = 0; p < k; ++p) {
    const int32_t q = scale.level(x[p]);
    high[p] = static_cast<uint8_t>((q >> 7) + offset);
    low[p] = static_cast<uint8_t>(q & 127);
  }
  return scale.down;
}

// The same in 16 bits.
inline float round_row(int64_t k, const float* x, int16_t* levels) {
  const RowScale scale(k, x);
#pragma omp simd
  for (int64_t p = 0; p < k; ++p) levels[p] = static_cast<int16_t>(scale.level(x[p]));
  return scale.down;
}

// Rows of activations for a few rows of products.
class Rounded {
 public:
  // x (m, k); `offset` is added to high. `group`: inputs whose sums are kept; 0: none.
  void round(int64_t m, int64_t k, const float* x, int offset, int64_t group) {
    stride = round_up(k, kInputs);
    bytes.resize(2 * m * stride);
    scales.resize(m);
    num_groups = group == 0 ? 0 : stride / group;
    sums.resize(m * num_groups);
    for (int64_t r = 0; r < m; ++r) {
      uint8_t *highs = high(r), *lows = low(r, m);
      scales[r] = round_row(k, x + r * k, offset, highs, lows);
      std::fill(highs + k, highs + stride, static_cast<uint8_t>(offset));
      std::fill(lows + k, lows + stride, 0);
      for (int64_t g = 0; g < num_groups; ++g) {
        int32_t sum = 0;
        for (int64_t p = g * group; p < (g + 1) * group; ++p) sum += 128 * static_cast<int8_t>(highs[p]) + lows[p];
        sums[r * num_groups + g] = sum;
      }
    }
  }

  uint8_t* high(int64_t row) { return bytes.data() + row * stride; }
  uint8_t* low(int64_t row, int64_t m) { return bytes.data() + (m + row) * stride; }

  int64_t stride = 0, num_groups = 0;
  std::vector<uint8_t> bytes;  // the high bytes of all rows, then the low ones
  std::vector<float> scales;
  std::vector<int32_t> sums;  // (m, num_groups) of 128 high + low
};

inline Ints same_four(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof(four));
  return same_ints(four);
}

// ---- products of R rows with V vectors of outputs of a panel

constexpr int kPanelVecs = kPanel / kLanes;
constexpr int kParts = 4;             // of a panel's inputs, read side by side: from one place, memory is not read at its full rate
constexpr int64_t kAheadBytes = 1024;  // how far weights are prefetched

// each(p) for `count` inputs, kStep at a time, of each of the kParts parts, which are `part` inputs apart.
template <int kStep, typename F>
[[gnu::always_inline]] inline void for_parts(int64_t count, int64_t part, F&& each) {
  for (int64_t p = 0; p < count; p += kStep)
#pragma GCC unroll 4
    for (int64_t from = 0; from < kParts; ++from) each(from * part + p);
}

// sums (R, kPanel) += x weights, for `count` inputs of each of the kParts parts, which are `part` inputs apart; `panel` begins at the
// first of the V vectors.
template <int R, int V>
inline void dot_bf16(int64_t count, int64_t part, const float* x, int64_t ldx, const Bf16* panel, float* sums, bool prefetches) {
  Vec sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) sum[i][j] = load(sums + i * kPanel + j * kLanes);
  for_parts<2>(count, part, [&](int64_t p) __attribute__((always_inline)) {
    Vec even[V], odd[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      const Bf16* from = panel + p * kPanel + 2 * j * kLanes;
      if (prefetches) __builtin_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes);
      const Ints both = load_ints(from);
      even[j] = even_bf16(both);
      odd[j] = odd_bf16(both);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const float first = x[i * ldx + p], second = x[i * ldx + p + 1];
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) sum[i][j] += first * even[j];
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) sum[i][j] += second * odd[j];
    }
  });
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) store(sums + i * kPanel + j * kLanes, sum[i][j]);
}

// highs, lows (R, kPanel) += the high and low bytes of x times weights, for inputs as in `dot_bf16`
template <int R, int V>
inline void dot_int8(int64_t count, int64_t part, const uint8_t* high, const uint8_t* low, int64_t ldx, const int8_t* panel, int32_t* highs,
                     int32_t* lows, bool prefetches) {
  Ints h[R][V], l[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      h[i][j] = load_ints(highs + i * kPanel + j * kLanes);
      l[i][j] = load_ints(lows + i * kPanel + j * kLanes);
    }
  for_parts<4>(count, part, [&](int64_t p) __attribute__((always_inline)) {
    Ints w[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      const int8_t* from = panel + p * kPanel + 4 * j * kLanes;
      if (prefetches) __builtin_prefetch(from + kAheadBytes);
      w[j] = load_ints(from);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Ints x_high = same_four(high + i * ldx + p), x_low = same_four(low + i * ldx + p);
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) {
        h[i][j] = add_dot<true>(h[i][j], x_high, w[j]);
        l[i][j] = add_dot<true>(l[i][j], x_low, w[j]);
      }
    }
  });
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      store_ints(highs + i * kPanel + j * kLanes, h[i][j]);
      store_ints(lows + i * kPanel + j * kLanes, l[i][j]);
    }
}

// The same without VNNI: sums (R, kPanel, 2) += x times weights in 16 bits, of inputs 0, 1 and 2, 3 of each four. V vectors of half as
// many outputs as lanes.
template <int R, int V>
inline void dot_int16(int64_t count, int64_t part, const int16_t* x, int64_t ldx, const int8_t* panel, int32_t* sums, bool prefetches) {
  Ints sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) sum[i][j] = load_ints(sums + 2 * i * kPanel + j * kLanes);
  for_parts<4>(count, part, [&](int64_t p) __attribute__((always_inline)) {
    Ints w[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      const int8_t* from = panel + p * kPanel + 2 * j * kLanes;
      if (prefetches && 2 * j * kLanes % 64 == 0) __builtin_prefetch(from + kAheadBytes);
      w[j] = load_widened(from);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      int64_t four;
      std::memcpy(&four, x + i * ldx + p, sizeof(four));
      const Ints inputs = same_longs(four);
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) sum[i][j] = add(sum[i][j], madd(w[j], inputs));
    }
  });
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) store_ints(sums + 2 * i * kPanel + j * kLanes, sum[i][j]);
}

// sums (R, kPanel) = x (R, groups of kGroup) weights, in units of x's scales. x_sums (R, groups): Rounded::sums.
template <int R, int V, bool kVnni>
inline void dot_int4(int64_t groups, const uint8_t* high, const uint8_t* low, int64_t ldx, const int32_t* x_sums, int64_t ld_sums,
                     const Int4* panel, const uint16_t* scales, float* sums, bool prefetches) {
  Vec sum[R][V] = {};
  const int parts = groups % kParts == 0 ? kParts : 2;  // groups are even in number
  for (int64_t step = 0; step < groups; ++step) {
    const int64_t g = step % parts * (groups / parts) + step / parts;
    Ints h[R][V], l[R][V];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) h[i][j] = l[i][j] = same_ints(0);
    for (int64_t p = g * kGroup; p < (g + 1) * kGroup; p += 8) {
      Ints w[V];
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) {
        const Int4* from = panel + p / 2 * kPanel + 4 * j * kLanes;
        if (prefetches) __builtin_prefetch(from + kAheadBytes);
        w[j] = load_ints(from);
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const uint8_t *at_high = high + i * ldx + p, *at_low = low + i * ldx + p;
        const Ints high_1 = same_four(at_high), high_2 = same_four(at_high + 4);
        const Ints low_1 = same_four(at_low), low_2 = same_four(at_low + 4);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) {
          const Ints first = low_halves(w[j]), second = high_halves(w[j]);
          h[i][j] = add_dot<kVnni>(add_dot<kVnni>(h[i][j], first, high_1), second, high_2);
          l[i][j] = add_dot<kVnni>(add_dot<kVnni>(l[i][j], first, low_1), second, low_2);
        }
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      const Vec scale = load_fp16(scales + g * kPanel + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const Ints all = add(times_128(h[i][j]), subtract(l[i][j], same_ints(8 * x_sums[i * ld_sums + g])));
        sum[i][j] += scale * to_floats(all);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) store(sums + i * kPanel + j * kLanes, sum[i][j]);
}

}  // namespace gpt2x
