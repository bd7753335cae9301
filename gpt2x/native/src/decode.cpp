// A transformer block on new tokens, with its keys and values in a cache, and the head: what decoding a token takes.
//
// Legend: B rows, T new tokens a row, M = B T, D hidden, F feed-forward, N heads, H head dim, S cached positions, V table rows.
#include <algorithm>
#include <limits>
#include <vector>

#include "attention.hpp"
#include "op.hpp"
#include "stream.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kStreamed = 8;  // tokens a row from which on oneDNN's products are faster than reading weights once

// y (M, N) = x (M, K) weights (K, N) + bias (N)
template <typename W>
void linear(int64_t m, int64_t k, int64_t n, bool is_streamed, const float* x, Weights<W> weights, const float* bias, float* y) {
  const auto finish = [&](int64_t r, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t c = begin; c < end; ++c) y[r * n + c] = y[r * n + c] * weights.scale(c) + bias[c];
  };
  if constexpr (std::is_same_v<W, float>) {
    if (m == 1) {
      stream_row(k, n, x, weights.data, y);
      finish(0, 0, n);
      return;
    }
  }
  if (is_streamed) {
    parallel_ranges(n, kPanel, [&](int64_t begin, int64_t end) {
      stream_columns(m, k, x, weights, begin, end, y, n);
      for (int64_t r = 0; r < m; ++r) finish(r, begin, end);
    });
    return;
  }
  const float* dense;
  if constexpr (std::is_same_v<W, float>) {
    dense = weights.data;
  } else {
    static Workspace workspace;
    float* values = workspace.get(k * n);
    parallel_ranges(n, kPanel, [&](int64_t begin, int64_t end) {
      const W* panel = weights.column(begin, k);
      for (int64_t p = 0; p < k; ++p)
#pragma omp simd
        for (int64_t c = begin; c < end; ++c) values[p * n + c] = to_float(panel[p * kPanel + c - begin]);
    });
    dense = values;
  }
  gemm(false, false, m, n, k, x, k, dense, n, 0.0f, y, n);
  parallel_for(m, [&](int64_t r) { finish(r, 0, n); });
}

void layer_norm(int64_t m, int64_t width, const float* x, const float* weight, const float* bias, float eps, float* y) {
  const auto one = [&](int64_t r) { layer_norm_row(width, x + r * width, weight, bias, eps, y + r * width); };
  if (m < 16) {
    for (int64_t r = 0; r < m; ++r) one(r);
  } else {
    parallel_for(m, one);
  }
}

// out (M, D) of the last D of qkv's queries over the cache up to each token's position
void attend_cached(int64_t m, int64_t heads, int64_t head_dim, int64_t length, int64_t tokens, const int32_t* positions,
                   const int32_t* slots, const float* qkv, const float* keys, const float* values, float* out) {
  const int64_t hidden = heads * head_dim;
  const float factor = 1.0f / std::sqrt(static_cast<float>(head_dim));
  parallel_for(m * heads, [&](int64_t task) {
    const int64_t r = task / heads, n = task % heads, count = positions[r] + 1;
    const int64_t first = (slots[r / tokens] * heads + n) * length * head_dim;
    const float *q = qkv + r * 3 * hidden + n * head_dim, *k = keys + first, *v = values + first;
    static thread_local std::vector<float> scores;
    scores.resize(count);
    float* weights = scores.data();
    float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
    for (int64_t s = 0; s < count; ++s) {
      float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
      for (int64_t h = 0; h < head_dim; ++h) dot += q[h] * k[s * head_dim + h];
      weights[s] = dot * factor;
      largest = std::max(largest, weights[s]);
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < count; ++s) sum += weights[s] = fast_exp(weights[s] - largest);
    float* to = out + r * hidden + n * head_dim;
    std::fill(to, to + head_dim, 0.0f);
    for (int64_t s = 0; s < count; ++s) {
      const float weight = weights[s] / sum;
#pragma omp simd
      for (int64_t h = 0; h < head_dim; ++h) to[h] += weight * v[s * head_dim + h];
    }
  });
}

void store_cache(int64_t m, int64_t heads, int64_t head_dim, int64_t length, int64_t tokens, const int32_t* positions,
                 const int32_t* slots, const float* qkv, float* keys, float* values) {
  const int64_t hidden = heads * head_dim;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t n = 0; n < heads; ++n) {
      const int64_t at = ((slots[r / tokens] * heads + n) * length + positions[r]) * head_dim;
      const float* from = qkv + r * 3 * hidden + n * head_dim;
      std::copy_n(from + hidden, head_dim, keys + at);
      std::copy_n(from + 2 * hidden, head_dim, values + at);
    }
}

// x (M, D), positions (B, T), slots (B): rows of the cache; ln_1 weight and bias, then weights, scales and bias of c_attn and
// c_proj; ln_2, c_fc, c_proj alike; keys, values (rows, H) in place; settings (heads, S, activation: 0 gelu_new, 1 fast_gelu),
// eps (1) -> the block's output (M, D)
template <typename W>
void block(const Op& op) {
  const int64_t m = op.dim(0, 0), hidden = op.dim(0, 1), wide = op.dim(15, 0), tokens = op.dim(1, -1);
  const int32_t *positions = op.ints(1), *slots = op.ints(2), *settings = op.ints(21);
  const int64_t heads = settings[0], length = settings[1], head_dim = hidden / heads;
  const float *x = op.floats(0), eps = *op.floats(22);
  float *keys = op.floats(19), *values = op.floats(20), *y = op.floats(23);
  const auto weights = [&](int index) { return Weights<W>{static_cast<const W*>(op.data[index]), op.floats(index + 1)}; };
  const bool is_streamed = tokens <= kStreamed;
  static Workspace workspace;
  float* normed = workspace.get(m * (2 * hidden + std::max(3 * hidden, wide)));
  float *attended = normed + m * hidden, *inner = attended + m * hidden;

  layer_norm(m, hidden, x, op.floats(3), op.floats(4), eps, normed);
  linear(m, hidden, 3 * hidden, is_streamed, normed, weights(5), op.floats(7), inner);
  store_cache(m, heads, head_dim, length, tokens, positions, slots, inner, keys, values);
  bool is_prompt = !is_streamed;
  for (int64_t r = 0; r < m && is_prompt; ++r) is_prompt = positions[r] == r % tokens;
  if (is_prompt) {
    const int32_t nothing[8] = {};
    attend(AttentionShape(m / tokens, tokens, heads, head_dim, nothing, nothing, nothing, nothing), inner, attended, nullptr);
  } else {
    attend_cached(m, heads, head_dim, length, tokens, positions, slots, inner, keys, values, attended);
  }
  linear(m, hidden, hidden, is_streamed, attended, weights(8), op.floats(10), y);
  parallel_ranges(m * hidden, 1 << 15, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] += x[i];
  });
  layer_norm(m, hidden, y, op.floats(11), op.floats(12), eps, normed);
  linear(m, hidden, wide, is_streamed, normed, weights(13), op.floats(15), inner);
  const bool is_fast = settings[2] == 1;
  parallel_ranges(m * wide, 1 << 14, [&](int64_t begin, int64_t end) {
    if (is_fast) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) inner[i] *= sigmoid(1.702f * inner[i]);
    } else {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) inner[i] = gelu_new(inner[i]);
    }
  });
  linear(m, wide, hidden, is_streamed, inner, weights(16), op.floats(18), attended);
  parallel_ranges(m * hidden, 1 << 15, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] += attended[i];
  });
}

// x (M, D), ln_f weight and bias, table (V or more, D), its scales, eps (1) -> logits (M, V)
template <typename W>
void head(const Op& op) {
  const int64_t m = op.dim(0, 0), hidden = op.dim(0, 1), num_rows = op.dim(6, 1);
  const Weights<W> table{static_cast<const W*>(op.data[3]), op.floats(4)};
  float* logits = op.floats(6);
  static Workspace workspace;
  float* normed = workspace.get(m * hidden);
  layer_norm(m, hidden, op.floats(0), op.floats(1), op.floats(2), *op.floats(5), normed);
  parallel_ranges(num_rows, 512, [&](int64_t begin, int64_t end) {
    stream_rows(m, hidden, normed, table.data, begin, end, logits, num_rows);
    if constexpr (std::is_same_v<W, int8_t>)
      for (int64_t r = 0; r < m; ++r)
        for (int64_t v = begin; v < end; ++v) logits[r * num_rows + v] *= table.scale(v);
  });
}

}  // namespace

GPT2X_OP(decoder_block_fp32) { block<float>(op); }
GPT2X_OP(decoder_block_bf16) { block<Bf16>(op); }
GPT2X_OP(decoder_block_int8) { block<int8_t>(op); }
GPT2X_OP(decoder_head_fp32) { head<float>(op); }
GPT2X_OP(decoder_head_bf16) { head<Bf16>(op); }
GPT2X_OP(decoder_head_int8) { head<int8_t>(op); }
