// Products of activations with the weights of a decoder, in any of their types: for few rows the weights are streamed, for many rows
// oneDNN multiplies. What follows a product (bias, activation, residual) is done by `finish`, where its values are in the cache.
#pragma once

#include <type_traits>

#include "gemm.hpp"
#include "panels.hpp"
#include "parallel.hpp"
#include "products.hpp"
#include "stream.hpp"
#include "workspace.hpp"

namespace gpt2x {

// A matrix (k, n) as the decoder reads it. float: the model's own, row-major, or its transpose if `is_table`. Others: panels.
// scales: int8 float32 (n, 2), of each output its factor and the sum of its weights; int4 fp16 (panels, inputs / kGroup, kPanel).
template <typename W>
struct Weights {
  const W* data;
  const void* scales;
  int64_t k, n;
  bool is_table = false;
};

inline float bf16_value(Bf16 w) {
  const uint32_t bits = static_cast<uint32_t>(w.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float fp16_value(uint16_t bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }

// each(row, R, V) for the m rows, R = 4, 2 or 1 of them at a time, with V = kFour, kTwo or kOne vectors of outputs; R and V are
// constants of the compiler.
template <int kFour, int kTwo, int kOne, typename F>
[[gnu::always_inline]] inline void for_rows(int64_t m, F&& each) {
  int64_t r = 0;
  for (; m - r >= 4; r += 4) each(r, std::integral_constant<int, 4>{}, std::integral_constant<int, kFour>{});
  for (; m - r >= 2; r += 2) each(r, std::integral_constant<int, 2>{}, std::integral_constant<int, kTwo>{});
  for (; r < m; ++r) each(r, std::integral_constant<int, 1>{}, std::integral_constant<int, kOne>{});
}

constexpr int64_t kRowsInCache = 128;  // whose sums stay in the cache

// What a few rows of activations become before they meet weights of a type.
template <typename W>
class Activations;

template <>
class Activations<Bf16> {
 public:
  Activations(int64_t m, int64_t k, const float* x) : stride_(round_up(k, 32)), rows_(x) {
    if (stride_ == k) return;
    padded_.assign(m * stride_, 0.0f);
    for (int64_t r = 0; r < m; ++r) std::copy_n(x + r * k, k, padded_.data() + r * stride_);
    rows_ = padded_.data();
  }

  // values (m, kPanel) = x times panel `index`
  void times(int64_t m, const Weights<Bf16>& weights, int64_t index, float* values) const {
    constexpr int64_t kInputsAtATime = 32;  // of each part, whose weights stay in the first-level cache while all rows pass
    constexpr int kFew = kLanes == 16 ? 4 : 2;
    const Bf16* panel = weights.data + index * stride_ * kPanel;
    const int64_t part = stride_ / kParts;
    std::fill(values, values + m * kPanel, 0.0f);
    for (int64_t p = 0; p < part; p += kInputsAtATime) {
      const int64_t count = std::min(kInputsAtATime, part - p);
      for_rows<kFew, kFew, 4>(m, [&](int64_t r, auto rows, auto vecs) {
        constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
        for (int j = 0; j < kPanelVecs; j += V)
          dot_bf16<R, V>(count, part, rows_ + r * stride_ + p, stride_, panel + p * kPanel + 2 * j * kLanes,
                         values + r * kPanel + j * kLanes, r == 0);
      });
    }
  }

 private:
  int64_t stride_;
  const float* rows_;
  std::vector<float> padded_;
};

// Of each output its factor and the sum of its weights, from output `begin` on.
inline const float* factors_of(const Weights<int8_t>& weights, int64_t begin) {
  return static_cast<const float*>(weights.scales) + 2 * begin;
}

// The values of `width` outputs from their sums in levels, which are exact: total(output).
template <typename F>
inline void scale_int8(const float* factors, float row_scale, int64_t width, F&& total, float* values) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) values[c] = row_scale * factors[2 * c] * static_cast<float>(total(c));
}

// `scale_int8` of the sums of high and low bytes.
inline void scale_bytes(const float* factors, float row_scale, int64_t width, const int32_t* highs, const int32_t* lows, float* values) {
  const auto total = [&](int64_t c) {
    return 128.0 * (highs[c] - kOffset * static_cast<int32_t>(factors[2 * c + 1])) + static_cast<double>(lows[c]);
  };
  scale_int8(factors, row_scale, width, total, values);
}

// In two bytes, for VNNI, or in 16 bits.
template <>
class Activations<int8_t> {
 public:
  Activations(int64_t m, int64_t k, const float* x) {
    if (has_vnni()) rounded_.round(m, k, x, kOffset, 0);
    else round(m, k, x);
  }

  void times(int64_t m, const Weights<int8_t>& weights, int64_t index, float* values) {
    if (has_vnni()) by_bytes(m, weights, index, values);
    else by_levels(m, weights, index, values);
  }

 private:
  static constexpr int64_t kInputsAtATime = 64;

  void round(int64_t m, int64_t k, const float* x) {
    stride_ = round_up(k, kInputs);
    levels_.assign(m * stride_, 0);
    scales_.resize(m);
    const auto one = [&](int64_t r) { scales_[r] = round_row(k, x + r * k, levels_.data() + r * stride_); };
    if (m > 8) parallel_for(m, one);
    else
      for (int64_t r = 0; r < m; ++r) one(r);
  }

  void by_bytes(int64_t m, const Weights<int8_t>& weights, int64_t index, float* values) {
    const int64_t part = rounded_.stride / kParts;
    constexpr int kFew = kLanes == 16 ? 2 : 1;
    const int8_t* panel = weights.data + index * rounded_.stride * kPanel;
    static thread_local std::vector<int32_t> sums;
    sums.assign(2 * m * kPanel, 0);
    int32_t *highs = sums.data(), *lows = highs + m * kPanel;
    for (int64_t p = 0; p < part; p += kInputsAtATime) {
      const int64_t count = std::min(kInputsAtATime, part - p);
      for_rows<kFew, 2, 4>(m, [&](int64_t r, auto rows, auto vecs) {
        constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
        for (int j = 0; j < kPanelVecs; j += V) {
          const int64_t at = r * kPanel + j * kLanes;
          dot_int8<R, V>(count, part, rounded_.high(r) + p, rounded_.low(r, m) + p, rounded_.stride,
                         panel + p * kPanel + 4 * j * kLanes, highs + at, lows + at, r == 0);
        }
      });
    }
    const int64_t begin = index * kPanel, width = std::min(kPanel, weights.n - begin);
    for (int64_t r = 0; r < m; ++r)
      scale_bytes(factors_of(weights, begin), rounded_.scales[r], width, highs + r * kPanel, lows + r * kPanel, values + r * kPanel);
  }

  void by_levels(int64_t m, const Weights<int8_t>& weights, int64_t index, float* values) {
    constexpr int64_t kUntilFull = 4096 / kParts;  // a sum has half of the inputs: 2048 * kLevels * 127 < 2^31
    const int64_t part = stride_ / kParts;
    const int8_t* panel = weights.data + index * stride_ * kPanel;
    static thread_local std::vector<int32_t> sums;
    static thread_local std::vector<double> totals;
    totals.assign(m * kPanel, 0.0);
    for (int64_t first = 0; first < part; first += kUntilFull) {
      const int64_t last = std::min(part, first + kUntilFull);
      sums.assign(2 * m * kPanel, 0);
      for (int64_t p = first; p < last; p += kInputsAtATime) {
        const int64_t count = std::min(kInputsAtATime, last - p);
        for_rows<kLanes == 16 ? 4 : 2, 4, 8>(m, [&](int64_t r, auto rows, auto vecs) {
          constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
          for (int j = 0; j < 2 * kPanelVecs; j += V)
            dot_int16<R, V>(count, part, levels_.data() + r * stride_ + p, stride_, panel + p * kPanel + 2 * j * kLanes,
                            sums.data() + 2 * r * kPanel + j * kLanes, r == 0);
        });
      }
      for (int64_t i = 0; i < m * kPanel; ++i) totals[i] += static_cast<double>(sums[2 * i]) + sums[2 * i + 1];
    }
    const int64_t begin = index * kPanel, width = std::min(kPanel, weights.n - begin);
    for (int64_t r = 0; r < m; ++r)
      scale_int8(factors_of(weights, begin), scales_[r], width, [&](int64_t c) { return totals[r * kPanel + c]; }, values + r * kPanel);
  }

  Rounded rounded_;               // for VNNI
  int64_t stride_ = 0;            // otherwise, of
  std::vector<int16_t> levels_;   // (m, stride)
  std::vector<float> scales_;
};

template <>
class Activations<Int4> {
 public:
  Activations(int64_t m, int64_t k, const float* x) { rounded_.round(m, k, x, 0, kGroup); }

  void times(int64_t m, const Weights<Int4>& weights, int64_t index, float* values) {
    if (has_vnni()) add<true>(m, weights, index, values);
    else add<false>(m, weights, index, values);
  }

 private:
  template <bool kVnni>
  void add(int64_t m, const Weights<Int4>& weights, int64_t index, float* values) {
    constexpr int kFew = kLanes == 16 ? 2 : 1;
    const int64_t groups = rounded_.num_groups;
    const Int4* panel = weights.data + index * rounded_.stride / 2 * kPanel;
    const uint16_t* scales = static_cast<const uint16_t*>(weights.scales) + index * groups * kPanel;
    for (int64_t r = 0; r < m;) {
      const auto go = [&](auto rows, auto vecs) {
        constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
        for (int j = 0; j < kPanelVecs; j += V)
          dot_int4<R, V, kVnni>(groups, rounded_.high(r), rounded_.low(r, m), rounded_.stride, rounded_.sums.data() + r * groups,
                                groups, panel + 4 * j * kLanes, scales + j * kLanes, values + r * kPanel + j * kLanes, r == 0);
        r += R;
      };
      if (m - r >= 2) go(std::integral_constant<int, 2>{}, std::integral_constant<int, kFew>{});
      else go(std::integral_constant<int, 1>{}, std::integral_constant<int, kLanes == 16 ? 4 : 2>{});
    }
    for (int64_t r = 0; r < m; ++r)
#pragma omp simd
      for (int64_t c = 0; c < kPanel; ++c) values[r * kPanel + c] *= rounded_.scales[r];
  }

  Rounded rounded_;
};

// ---- weights in a wider type, for oneDNN

inline float value_of(const Weights<Bf16>& weights, int64_t panel, int64_t p, int64_t c) {
  return bf16_value(weights.data[(panel * round_up(weights.k, 32) + p / 2 * 2) * kPanel + 2 * c + p % 2]);
}
inline float value_of(const Weights<Int4>& weights, int64_t panel, int64_t p, int64_t c) {
  const int64_t inputs = round_up(weights.k, kInputs);
  const uint8_t bits = weights.data[panel * inputs / 2 * kPanel + p / 8 * 4 * kPanel + 4 * c + p % 4].bits;
  const uint16_t scale = static_cast<const uint16_t*>(weights.scales)[(panel * inputs + p) / kGroup * kPanel + c];
  return fp16_value(scale) * ((p % 8 < 4 ? bits & 15 : bits >> 4) - 8);
}

// Row-major fp32 (k, n).
template <typename W>
const float* widened(const Weights<W>& weights) {
  static Workspace workspace;
  float* values = workspace.get(weights.k * weights.n);
  parallel_for((weights.n + kPanel - 1) / kPanel, [&](int64_t panel) {
    const int64_t width = std::min(kPanel, weights.n - panel * kPanel);
    for (int64_t p = 0; p < weights.k; ++p)
      for (int64_t c = 0; c < width; ++c) values[p * weights.n + panel * kPanel + c] = value_of(weights, panel, p, c);
  });
  return values;
}

// int4 as panels of bf16: (weight - 8) times the scale of its group, rounded.
inline const Bf16* bf16_panels(const Weights<Int4>& weights) {
  static Workspace workspace;
  const int64_t inputs = round_up(weights.k, 32), stored = round_up(weights.k, kInputs);
  Bf16* panels = workspace.get<Bf16>(round_up(weights.n, kPanel) * inputs);
  parallel_for((weights.n + kPanel - 1) / kPanel, [&](int64_t index) {
    const Int4* from = weights.data + index * stored / 2 * kPanel;
    const uint16_t* scales = static_cast<const uint16_t*>(weights.scales) + index * stored / kGroup * kPanel;
    Bf16* to = panels + index * inputs * kPanel;
    float factors[kPanel], pair[2 * kPanel];
    for (int64_t p = 0; p < inputs; p += 2) {
      if (p % kGroup == 0)
        for (int64_t c = 0; c < kPanel; c += kLanes) store(factors + c, load_fp16(scales + p / kGroup * kPanel + c));
      const uint8_t* bits = &from[p / 8 * 4 * kPanel].bits + p % 4;
      const int shift = p % 8 < 4 ? 0 : 4;
#pragma omp simd
      for (int64_t c = 0; c < kPanel; ++c) {
        pair[2 * c] = factors[c] * (((bits[4 * c] >> shift) & 15) - 8);
        pair[2 * c + 1] = factors[c] * (((bits[4 * c + 1] >> shift) & 15) - 8);
      }
      round_to_bf16(2 * kPanel, pair, to + p * kPanel);
    }
  });
  return panels;
}

// ---- many rows

inline const Bf16* bf16_rows(int64_t m, int64_t k, const float* x) {
  static Workspace workspace;
  Bf16* rows = workspace.get<Bf16>(m * k);
  round_in_parallel(m * k, x, rows);
  return rows;
}

// By bytes, whose sums are those of `Activations<int8_t>`, and so are the values; some rows at a time, whose sums stay in the cache.
template <typename F>
void multiply_int8(int64_t m, const float* x, const Weights<int8_t>& weights, F&& finish) {
  static Workspace room_of_bytes, room_of_sums, room_of_scales;
  const int64_t n = weights.n, k = weights.k;
  uint8_t* bytes = room_of_bytes.get<uint8_t>(2 * kRowsInCache * k);
  int32_t* sums = room_of_sums.get<int32_t>(2 * kRowsInCache * n);
  float* scales = room_of_scales.get(kRowsInCache);
  for (int64_t first = 0; first < m; first += kRowsInCache) {
    const int64_t count = std::min(kRowsInCache, m - first);
    parallel_for(count, [&](int64_t r) {
      scales[r] = round_row(k, x + (first + r) * k, kOffset, bytes + r * k, bytes + (count + r) * k);
    });
    multiply_panels(2 * count, n, k, bytes, weights.data, sums);
    parallel_for(count, [&](int64_t r) {
      static thread_local Workspace workspace;
      float* values = workspace.get(n);
      scale_bytes(factors_of(weights, 0), scales[r], n, sums + r * n, sums + (count + r) * n, values);
      finish(first + r, 0, n, values);
    });
  }
}

template <typename W, typename F>
void multiply_many(int64_t m, const float* x, const Weights<W>& weights, F&& finish) {
  const int64_t k = weights.k, n = weights.n;
  static Workspace workspace;
  float* y = workspace.get(m * n);
  if constexpr (std::is_same_v<W, float>) {
    gemm(false, weights.is_table, m, n, k, x, k, weights.data, weights.is_table ? k : n, 0.0f, y, n);
  } else if (has_fast_bf16()) {
    const Bf16* panels;
    if constexpr (std::is_same_v<W, Bf16>) panels = weights.data;
    else panels = bf16_panels(weights);
    multiply_panels(m, n, k, bf16_rows(m, k, x), panels, y);
  } else {
    gemm(false, false, m, n, k, x, k, widened(weights), n, 0.0f, y, n);
  }
  parallel_for(m, [&](int64_t r) { finish(r, 0, n, y + r * n); });
}

// ---- few rows

template <typename W, typename F>
void multiply_few(int64_t m, const float* x, const Weights<W>& weights, F&& finish) {
  const int64_t k = weights.k, n = weights.n, num_panels = (n + kPanel - 1) / kPanel;
  if constexpr (!std::is_same_v<W, float>) {
    Activations<W> activations(m, k, x);
    parallel_for(num_panels, [&](int64_t index) {
      static thread_local Workspace workspace;
      float* values = workspace.get(m * kPanel);
      activations.times(m, weights, index, values);
      for (int64_t r = 0; r < m; ++r) finish(r, index * kPanel, std::min(n, (index + 1) * kPanel), values + r * kPanel);
    });
  } else if (weights.is_table) {
    constexpr int64_t kRange = 8;  // panels, so that a thread reads some time from one place
    parallel_ranges(num_panels, kRange, [&](int64_t first, int64_t last) {
      static thread_local Workspace workspace;
      float* values = workspace.get(m * kPanel);
      for (int64_t index = first; index < last; ++index) {
        const int64_t begin = index * kPanel, end = std::min(n, begin + kPanel);
        stream_rows(m, k, end - begin, x, weights.data + begin * k, values, kPanel);
        for (int64_t r = 0; r < m; ++r) finish(r, begin, end, values + r * kPanel);
      }
    });
  } else {
    float* sums = stream_dense(m, k, n, x, weights.data);
    const auto one = [&](int64_t r) {
      for (int64_t part = 1; part < num_threads(); ++part)
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) sums[r * n + c] += sums[(part * m + r) * n + c];
      finish(r, 0, n, sums + r * n);
    };
    if (m == 1) one(0);
    else parallel_for(m, one);
  }
}

// finish(r, begin, end, values) gets the values of outputs [begin, end) of row r of x (m, k) weights (k, n). x may not be where it
// writes.
template <typename W, typename F>
void multiply(int64_t m, bool is_few, const float* x, const Weights<W>& weights, F&& finish) {
  if constexpr (std::is_same_v<W, int8_t>) {  // all ways give the same values
    constexpr int64_t kMany = 8;              // rows from which oneDNN's products are faster
    if (m > kMany && has_fast_int8()) return multiply_int8(m, x, weights, finish);
    for (int64_t first = 0; first < m; first += kRowsInCache)
      multiply_few(std::min(kRowsInCache, m - first), x + first * weights.k, weights,
                   [&](int64_t r, auto... rest) { finish(first + r, rest...); });
  } else if (is_few) {
    multiply_few(m, x, weights, finish);
  } else {
    multiply_many(m, x, weights, finish);
  }
}

}  // namespace gpt2x
