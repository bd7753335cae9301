// Decoding: a transformer block on new tokens with keys and values in a cache, and the head.
//
// Legend: B rows, T new tokens per row, M = B T, D hidden, F feed-forward, N heads, H head dim, S cached positions, V vocabulary,
// P table rows (V and padding).
#include <algorithm>
#include <limits>

#include "attention.hpp"
#include "op.hpp"
#include "stream.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kStreamed = 8;  // with more tokens per row, oneDNN's products are faster than streaming the weights

// y (M, N) = x (M, K) weights (K, N) + bias (N)
template <typename W>
void linear(int64_t m, int64_t k, int64_t n, bool is_streamed, const float* x, Weights<W> weights, const float* bias, float* y) {
  const auto finish = [&](int64_t r, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t c = begin; c < end; ++c) y[r * n + c] = y[r * n + c] * weights.scale(c) + bias[c];
  };
  if (is_streamed) {
    if constexpr (std::is_same_v<W, float>) stream_dense(m, k, n, x, weights.data, y);
    else stream_panels(m, k, n, x, weights, y);
    for (int64_t r = 0; r < m; ++r) finish(r, 0, n);
    return;
  }
  const float* dense;
  if constexpr (std::is_same_v<W, float>) {
    dense = weights.data;
  } else {
    static Workspace workspace;
    float* values = workspace.get(k * n);
    parallel_ranges(n, kPanel, [&](int64_t begin, int64_t end) {
      const W* panel = weights.panel(begin / kPanel, k);
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

// scores become exp(score - largest score) -> their sum
float exponentials(int64_t count, float* scores) {
  float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
#pragma omp simd reduction(max : largest)
  for (int64_t s = 0; s < count; ++s) largest = scores[s] > largest ? scores[s] : largest;
#pragma omp simd reduction(+ : sum)
  for (int64_t s = 0; s < count; ++s) sum += scores[s] = fast_exp(scores[s] - largest);
  return sum;
}

// out (H) of one query of HV vectors over `count` keys and values (count, H); `scores` has room for `count` values. Four quarters are
// read side by side, because the processor prefetches only within a page of memory, but from several pages at a time.
template <int HV>
void attend_query(int64_t count, float factor, const float* query, const float* keys, const float* values, float* scores,
                  float* out) {
  constexpr int64_t kDim = HV * kLanes, kParts = 4;
  const int64_t quarter = count / kParts;
  Vec q[HV];
#pragma GCC unroll 8
  for (int j = 0; j < HV; ++j) q[j] = load(query + j * kLanes) * factor;
  const auto score = [&](int64_t s) {
    Vec dot = q[0] * load(keys + s * kDim);
#pragma GCC unroll 8
    for (int j = 1; j < HV; ++j) dot += q[j] * load(keys + s * kDim + j * kLanes);
    scores[s] = lanes_sum(dot);
  };
  for (int64_t s = 0; s < quarter; ++s)
#pragma GCC unroll 4
    for (int64_t part = 0; part < kParts; ++part) score(part * quarter + s);
  for (int64_t s = kParts * quarter; s < count; ++s) score(s);
  const float sum = exponentials(count, scores);
  Vec total[kParts][HV] = {};
  const auto add = [&](Vec* to, int64_t s) {
#pragma GCC unroll 8
    for (int j = 0; j < HV; ++j) to[j] += scores[s] * load(values + s * kDim + j * kLanes);
  };
  for (int64_t s = 0; s < quarter; ++s)
#pragma GCC unroll 4
    for (int64_t part = 0; part < kParts; ++part) add(total[part], part * quarter + s);
  for (int64_t s = kParts * quarter; s < count; ++s) add(total[0], s);
#pragma GCC unroll 8
  for (int j = 0; j < HV; ++j) store(out + j * kLanes, (total[0][j] + total[1][j] + total[2][j] + total[3][j]) / sum);
}

// attend_query for an H that is not a multiple of the vector length
void attend_any_query(int64_t count, int64_t head_dim, float factor, const float* query, const float* keys, const float* values,
                      float* scores, float* out) {
  for (int64_t s = 0; s < count; ++s) {
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t h = 0; h < head_dim; ++h) dot += query[h] * keys[s * head_dim + h];
    scores[s] = dot * factor;
  }
  const float sum = exponentials(count, scores);
  std::fill(out, out + head_dim, 0.0f);
  for (int64_t s = 0; s < count; ++s)
#pragma omp simd
    for (int64_t h = 0; h < head_dim; ++h) out[h] += scores[s] / sum * values[s * head_dim + h];
}

// qkv (M, 3D): its queries attend to the cache up to each token's position -> out (M, D)
void attend_cached(int64_t m, int64_t heads, int64_t head_dim, int64_t length, int64_t tokens, const int32_t* positions,
                   const int32_t* slots, const float* qkv, const float* keys, const float* values, float* out) {
  const int64_t hidden = heads * head_dim;
  const float factor = 1.0f / std::sqrt(static_cast<float>(head_dim));
  parallel_for(m * heads, [&](int64_t task) {
    const int64_t r = task / heads, n = task % heads, count = positions[r] + 1;
    const int64_t first = (slots[r / tokens] * heads + n) * length * head_dim;
    static thread_local Workspace workspace;
    float *scores = workspace.get(count), *to = out + r * hidden + n * head_dim;
    const float *q = qkv + r * 3 * hidden + n * head_dim, *k = keys + first, *v = values + first;
    const auto attend = [&](auto vecs) { attend_query<decltype(vecs)::value>(count, factor, q, k, v, scores, to); };
    switch (head_dim % kLanes == 0 ? head_dim / kLanes : 0) {
      case 1: return attend(std::integral_constant<int, 1>{});
      case 2: return attend(std::integral_constant<int, 2>{});
      case 4: return attend(std::integral_constant<int, 4>{});
      case 5: return attend(std::integral_constant<int, 5>{});
      case 6: return attend(std::integral_constant<int, 6>{});
      case 8: return attend(std::integral_constant<int, 8>{});
      default: return attend_any_query(count, head_dim, factor, q, k, v, scores, to);
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

// positions (B, T): of the new tokens; slots (B): rows of the cache. keys and values (rows, H) change in place. Matrices have the
// type of the template's W; scales: Weights::scales; settings: DecoderSettings.
#define GPT2X_BLOCK(type)                                                                                       \
  "x float32 (M, D), positions int32, slots int32 (B), ln_1_weight float32 (D), ln_1_bias float32 (D), "         \
  "attn " type ", attn_scales float32, attn_bias float32, proj " type ", proj_scales float32, proj_bias float32 (D), " \
  "ln_2_weight float32 (D), ln_2_bias float32 (D), fc " type ", fc_scales float32, fc_bias float32 (F), "        \
  "out " type ", out_scales float32, out_bias float32 (D), keys float32, values float32, settings int32 (3), "   \
  "eps float32 (1) -> y float32 (M, D)"

template <typename W>
void block(const auto& op) {
  const int64_t m = op.dim("M"), hidden = op.dim("D"), wide = op.dim("F"), tokens = op.last_dim("positions");
  const int32_t *positions = op.ints("positions"), *slots = op.ints("slots");
  const DecoderSettings& settings = op.template record<DecoderSettings>("settings");
  const int64_t heads = settings.num_heads, length = settings.cache_len, head_dim = hidden / heads;
  const float *x = op.floats("x"), eps = *op.floats("eps");
  float *keys = op.floats("keys"), *values = op.floats("values"), *y = op.floats("y");
  const Weights<W> attn{op.template values<W>("attn"), op.floats("attn_scales")};
  const Weights<W> proj{op.template values<W>("proj"), op.floats("proj_scales")};
  const Weights<W> fc{op.template values<W>("fc"), op.floats("fc_scales")};
  const Weights<W> out{op.template values<W>("out"), op.floats("out_scales")};
  const bool is_streamed = tokens <= kStreamed;
  static Workspace workspace;
  float* normed = workspace.get(m * (2 * hidden + std::max(3 * hidden, wide)));
  float *attended = normed + m * hidden, *inner = attended + m * hidden;

  layer_norm(m, hidden, x, op.floats("ln_1_weight"), op.floats("ln_1_bias"), eps, normed);
  linear(m, hidden, 3 * hidden, is_streamed, normed, attn, op.floats("attn_bias"), inner);
  store_cache(m, heads, head_dim, length, tokens, positions, slots, inner, keys, values);
  bool is_prompt = !is_streamed;
  for (int64_t r = 0; r < m && is_prompt; ++r) is_prompt = positions[r] == r % tokens;
  if (is_prompt) {
    const int32_t unused = 0;
    const AttentionSettings whole = {};  // no segments, no dropout
    attend(AttentionShape(m / tokens, tokens, heads, head_dim, &unused, &unused, &unused, whole), inner, attended, nullptr);
  } else {
    attend_cached(m, heads, head_dim, length, tokens, positions, slots, inner, keys, values, attended);
  }
  linear(m, hidden, hidden, is_streamed, attended, proj, op.floats("proj_bias"), y);
  parallel_ranges(m * hidden, 1 << 15, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] += x[i];
  });
  layer_norm(m, hidden, y, op.floats("ln_2_weight"), op.floats("ln_2_bias"), eps, normed);
  linear(m, hidden, wide, is_streamed, normed, fc, op.floats("fc_bias"), inner);
  const bool is_fast = settings.activation == kFastGelu;
  parallel_ranges(m * wide, 1 << 14, [&](int64_t begin, int64_t end) {
    if (is_fast) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) inner[i] = fast_gelu(inner[i]);
    } else {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) inner[i] = gelu_new(inner[i]);
    }
  });
  linear(m, wide, hidden, is_streamed, inner, out, op.floats("out_bias"), attended);
  parallel_ranges(m * hidden, 1 << 15, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] += attended[i];
  });
}

#define GPT2X_HEAD(type)                                                                                            \
  "x float32 (M, D), ln_f_weight float32 (D), ln_f_bias float32 (D), table " type " (P, D), table_scales float32, " \
  "eps float32 (1) -> logits float32 (M, V)"

template <typename W>
void head(const auto& op) {
  const int64_t m = op.dim("M"), hidden = op.dim("D"), num_rows = op.dim("V");
  const Weights<W> table{op.template values<W>("table"), op.floats("table_scales")};
  float* logits = op.floats("logits");
  static Workspace workspace;
  float* normed = workspace.get(m * hidden);
  layer_norm(m, hidden, op.floats("x"), op.floats("ln_f_weight"), op.floats("ln_f_bias"), *op.floats("eps"), normed);
  parallel_ranges(num_rows, 512, [&](int64_t begin, int64_t end) {
    stream_rows(m, hidden, normed, table.data, begin, end, logits, num_rows);
    if constexpr (std::is_same_v<W, int8_t>)
      for (int64_t r = 0; r < m; ++r)
        for (int64_t v = begin; v < end; ++v) logits[r * num_rows + v] *= table.scale(v);
  });
}

}  // namespace

GPT2X_OP(decoder_block_fp32, GPT2X_BLOCK("float32")) { block<float>(op); }
GPT2X_OP(decoder_block_bf16, GPT2X_BLOCK("int16")) { block<Bf16>(op); }
GPT2X_OP(decoder_block_int8, GPT2X_BLOCK("int8")) { block<int8_t>(op); }
GPT2X_OP(decoder_head_fp32, GPT2X_HEAD("float32")) { head<float>(op); }
GPT2X_OP(decoder_head_bf16, GPT2X_HEAD("int16")) { head<Bf16>(op); }
GPT2X_OP(decoder_head_int8, GPT2X_HEAD("int8")) { head<int8_t>(op); }
