// Decoding: all layers of the model on new tokens, with keys and values in a cache, and the head, in one call.
//
// Legend: B rows, T new tokens per row, M = B T, L of them per row whose next token is computed, D hidden, F feed-forward, N heads,
// H head dim, S cached positions, V vocabulary, P table rows (V and padding).
#include <algorithm>
#include <limits>
#include <mutex>

#include "attention.hpp"
#include "op.hpp"
#include "weights.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kStreamed = 8;  // with more tokens per row, oneDNN's products are faster than streaming the weights
std::mutex turn;                  // Python's threads may decode at the same time, and room for activations is shared

// What all layers of a step share.
struct Step {
  int64_t m, tokens;         // rows of activations, and how many belong to one sequence
  const int32_t* positions;  // (M) in the sequence
  const DecoderSettings& settings;
  float eps;
  bool is_few;  // rows per sequence, so few that the weights are streamed
};

inline Vec load_cached(const float* p) { return load(p); }
inline Vec load_cached(const Bf16* p) {  // intrinsics, because GCC 12 converts such vectors one by one
#if defined(__AVX512F__)
  return even_bf16(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
  return even_bf16(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
}
inline float cached_value(float value) { return value; }
inline float cached_value(Bf16 value) { return bf16_value(value); }
inline void to_cache(int64_t count, const float* from, float* to) { std::copy_n(from, count, to); }
inline void to_cache(int64_t count, const float* from, Bf16* to) { round_to_bf16(count, from, to); }

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
template <int HV, typename C>
void attend_query(int64_t count, float factor, const float* query, const C* keys, const C* values, float* scores, float* out) {
  constexpr int64_t kDim = HV * kLanes, kParts = 4;
  const int64_t quarter = count / kParts;
  Vec q[HV];
#pragma GCC unroll 8
  for (int j = 0; j < HV; ++j) q[j] = load(query + j * kLanes) * factor;
  const auto score = [&](int64_t s) {
    Vec dot = q[0] * load_cached(keys + s * kDim);
#pragma GCC unroll 8
    for (int j = 1; j < HV; ++j) dot += q[j] * load_cached(keys + s * kDim + j * kLanes);
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
    for (int j = 0; j < HV; ++j) to[j] += scores[s] * load_cached(values + s * kDim + j * kLanes);
  };
  for (int64_t s = 0; s < quarter; ++s)
#pragma GCC unroll 4
    for (int64_t part = 0; part < kParts; ++part) add(total[part], part * quarter + s);
  for (int64_t s = kParts * quarter; s < count; ++s) add(total[0], s);
#pragma GCC unroll 8
  for (int j = 0; j < HV; ++j) store(out + j * kLanes, (total[0][j] + total[1][j] + total[2][j] + total[3][j]) / sum);
}

// attend_query for an H that is not a multiple of the vector length
template <typename C>
void attend_any_query(int64_t count, int64_t head_dim, float factor, const float* query, const C* keys, const C* values,
                      float* scores, float* out) {
  for (int64_t s = 0; s < count; ++s) {
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t h = 0; h < head_dim; ++h) dot += query[h] * cached_value(keys[s * head_dim + h]);
    scores[s] = dot * factor;
  }
  const float sum = exponentials(count, scores);
  std::fill(out, out + head_dim, 0.0f);
  for (int64_t s = 0; s < count; ++s)
#pragma omp simd
    for (int64_t h = 0; h < head_dim; ++h) out[h] += scores[s] / sum * cached_value(values[s * head_dim + h]);
}

// qkv (M, 3D): its queries attend to the cache up to each token's position -> out (M, D)
template <typename C>
void attend_cached(const Step& step, int64_t head_dim, const float* qkv, const C* keys, const C* values, float* out) {
  const int64_t m = step.m, heads = step.settings.num_heads, length = step.settings.cache_len, tokens = step.tokens;
  const int32_t* positions = step.positions;
  const int64_t hidden = heads * head_dim;
  const float factor = 1.0f / std::sqrt(static_cast<float>(head_dim));
  parallel_for(m * heads, [&](int64_t task) {
    const int64_t r = task / heads, n = task % heads, count = positions[r] + 1;
    const int64_t first = (r / tokens * heads + n) * length * head_dim;
    static thread_local Workspace workspace;
    float *scores = workspace.get(count), *to = out + r * hidden + n * head_dim;
    const float* q = qkv + r * 3 * hidden + n * head_dim;
    const C *k = keys + first, *v = values + first;
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

template <typename C>
void store_cache(const Step& step, int64_t head_dim, const float* qkv, C* keys, C* values) {
  const int64_t heads = step.settings.num_heads, hidden = heads * head_dim;
  for (int64_t r = 0; r < step.m; ++r)
    for (int64_t n = 0; n < heads; ++n) {
      const int64_t at = ((r / step.tokens * heads + n) * step.settings.cache_len + step.positions[r]) * head_dim;
      const float* from = qkv + r * 3 * hidden + n * head_dim;
      to_cache(head_dim, from + hidden, keys + at);
      to_cache(head_dim, from + 2 * hidden, values + at);
    }
}

// The attention of a layer: qkv (M, 3D) -> out (M, D)
template <typename C>
void attend_layer(const Step& step, int64_t hidden, const float* qkv, C* keys, C* values, float* out) {
  const int64_t head_dim = hidden / step.settings.num_heads;
  store_cache(step, head_dim, qkv, keys, values);
  bool is_prompt = !step.is_few;
  for (int64_t r = 0; r < step.m && is_prompt; ++r) is_prompt = step.positions[r] == r % step.tokens;
  if (is_prompt) {
    const int32_t unused = 0;
    const AttentionSettings whole = {};  // no segments, no dropout
    const AttentionShape shape(step.m / step.tokens, step.tokens, step.settings.num_heads, head_dim, &unused, &unused, &unused, whole);
    attend(shape, qkv, out, nullptr);
  } else {
    attend_cached(step, head_dim, qkv, keys, values, out);
  }
}

// ids, positions (B, T), columns (B, L) of ids. The head's table has the type of the template's H, other matrices that of W; scales:
// Weights::scales; settings: DecoderSettings. keys and values (rows, H), float32 or bf16, change in place.
#define GPT2X_DECODER(type, head)                                                                                                \
  "ids int32 (B, T), positions int32 (B, T), columns int32 (B, L), tokens float32 (P, D), places float32 (S, D), "              \
  "ln_f_weight float32 (D), ln_f_bias float32 (D), table " head ", table_scales any, settings int32 (5), eps float32 (1), "     \
  "each ln_1_weight float32 (D), ln_1_bias float32 (D), attn " type ", attn_scales any, attn_bias float32, proj " type           \
  ", proj_scales any, proj_bias float32 (D), ln_2_weight float32 (D), ln_2_bias float32 (D), fc " type                          \
  ", fc_scales any, fc_bias float32 (F), out " type ", out_scales any, out_bias float32 (D), keys any, values any "

// x (M, D) through one layer, in place. normed (M, D), inner (M, max(3D, F)): room.
template <typename W>
void run_layer(const auto& op, const Step& step, float* x, float* normed, float* inner) {
  const int64_t m = step.m, hidden = op.dim("D"), wide = op.dim("F");
  const bool is_fast = step.settings.activation == kFastGelu;
  const auto matrix = [&](const W* data, const void* scales, int64_t k, int64_t n) { return Weights<W>{data, scales, k, n}; };
  const float *attn_bias = op.floats("attn_bias"), *proj_bias = op.floats("proj_bias");
  const float *fc_bias = op.floats("fc_bias"), *out_bias = op.floats("out_bias");

  layer_norm(m, hidden, x, op.floats("ln_1_weight"), op.floats("ln_1_bias"), step.eps, normed);
  const auto attn = matrix(op.template values<W>("attn"), op.template values<void>("attn_scales"), hidden, 3 * hidden);
  multiply(m, step.is_few, normed, attn, [&](int64_t r, int64_t begin, int64_t end, const float* values) {
#pragma omp simd
    for (int64_t c = begin; c < end; ++c) inner[r * 3 * hidden + c] = values[c - begin] + attn_bias[c];
  });
  if (step.settings.has_narrow_cache)
    attend_layer(step, hidden, inner, op.template values<Bf16>("keys"), op.template values<Bf16>("values"), normed);
  else
    attend_layer(step, hidden, inner, op.template values<float>("keys"), op.template values<float>("values"), normed);
  const auto add = [&](const float* bias) {
    return [=](int64_t r, int64_t begin, int64_t end, const float* values) {
      float* row = x + r * hidden;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) row[c] += values[c - begin] + bias[c];
    };
  };
  multiply(m, step.is_few, normed, matrix(op.template values<W>("proj"), op.template values<void>("proj_scales"), hidden, hidden),
           add(proj_bias));
  layer_norm(m, hidden, x, op.floats("ln_2_weight"), op.floats("ln_2_bias"), step.eps, normed);
  const auto fc = matrix(op.template values<W>("fc"), op.template values<void>("fc_scales"), hidden, wide);
  multiply(m, step.is_few, normed, fc, [&](int64_t r, int64_t begin, int64_t end, const float* values) {
    float* row = inner + r * wide;
    if (is_fast) {
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) row[c] = fast_gelu(values[c - begin] + fc_bias[c]);
    } else {
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) row[c] = gelu_new(values[c - begin] + fc_bias[c]);
    }
  });
  multiply(m, step.is_few, inner, matrix(op.template values<W>("out"), op.template values<void>("out_scales"), wide, hidden),
           add(out_bias));
}

// finish(r, begin, end, logits) for the R = B L tokens that columns choose
template <typename W, typename H, typename F>
void decode(const auto& op, int64_t num_rows, F&& finish) {
  const std::lock_guard<std::mutex> lock(turn);
  const int64_t m = op.dim("B") * op.dim("T"), tokens = op.dim("T"), hidden = op.dim("D"), wide = op.dim("F");
  const int64_t chosen = op.dim("B") * op.dim("L"), num_tokens = op.dim("P"), num_places = op.dim("S");
  const Step step{m, tokens, op.ints("positions"), op.template record<DecoderSettings>("settings"), *op.floats("eps"),
                  tokens <= kStreamed};
  const int32_t *ids = op.ints("ids"), *columns = op.ints("columns");
  static Workspace workspace;
  float *x = workspace.get(m * (2 * hidden + std::max(3 * hidden, wide)) + 2 * chosen * hidden), *normed = x + m * hidden;
  float *inner = normed + m * hidden, *last = inner + m * std::max(3 * hidden, wide), *last_normed = last + chosen * hidden;
  for (int64_t r = 0; r < m; ++r) {
    if (ids[r] < 0 || ids[r] >= num_tokens) throw std::invalid_argument("an id is outside the vocabulary");
    if (step.positions[r] < 0 || step.positions[r] >= std::min<int64_t>(num_places, step.settings.cache_len))
      throw std::invalid_argument("a position is outside the cache");
    const float *token = op.floats("tokens") + ids[r] * hidden, *place = op.floats("places") + step.positions[r] * hidden;
#pragma omp simd
    for (int64_t c = 0; c < hidden; ++c) x[r * hidden + c] = token[c] + place[c];
  }
  for (int layer = 0; layer < op.num_layers(); ++layer) run_layer<W>(op.layer(layer), step, x, normed, inner);
  const int64_t num_chosen = op.dim("L");
  for (int64_t i = 0; i < chosen; ++i) {
    if (columns[i] < 0 || columns[i] >= tokens) throw std::invalid_argument("a column is outside the new tokens");
    std::copy_n(x + (i / num_chosen * tokens + columns[i]) * hidden, hidden, last + i * hidden);
  }
  layer_norm(chosen, hidden, last, op.floats("ln_f_weight"), op.floats("ln_f_bias"), step.eps, last_normed);
  const Weights<H> table{op.template values<H>("table"), op.template values<void>("table_scales"), hidden, num_rows, true};
  multiply(chosen, step.is_few || num_chosen == 1, last_normed, table, finish);
}

template <typename W, typename H = W>
void logits(const auto& op) {
  const int64_t num_rows = op.dim("V");
  float* logits = op.floats("logits");
  decode<W, H>(op, num_rows, [&](int64_t r, int64_t begin, int64_t end, const float* values) {
    std::copy_n(values, end - begin, logits + r * num_rows + begin);
  });
}

// The most likely token of each row, the first of equal ones; -1 if a logit is not finite.
template <typename W, typename H = W>
void likeliest(const auto& op) {
  struct Best {
    float logit = -std::numeric_limits<float>::infinity();
    int32_t token = 0;
  };
  const int64_t num_rows = op.template record<DecoderSettings>("settings").vocab_size, chosen = op.dim("B") * op.dim("L");
  const int64_t parts = (num_rows + kPanel - 1) / kPanel;
  std::vector<Best> best(chosen * parts);
  decode<W, H>(op, num_rows, [&](int64_t r, int64_t begin, int64_t end, const float* values) {
    float largest = -std::numeric_limits<float>::infinity(), total = 0.0f;
#pragma omp simd reduction(max : largest) reduction(+ : total)
    for (int64_t c = 0; c < end - begin; ++c) {
      largest = values[c] > largest ? values[c] : largest;
      total += values[c];  // not finite if a logit is not
    }
    Best& here = best[r * parts + begin / kPanel];
    here = {largest, -1};
    if (std::isfinite(total)) here.token = static_cast<int32_t>(begin + (std::find(values, values + (end - begin), largest) - values));
  });
  int32_t* tokens = op.ints("chosen");
  for (int64_t r = 0; r < chosen; ++r) {
    Best all;
    for (int64_t part = 0; part < parts && all.token >= 0; ++part) {
      const Best& here = best[r * parts + part];
      if (here.token < 0 || here.logit > all.logit) all = here;
    }
    tokens[r] = all.token;
  }
}

}  // namespace

#define GPT2X_LOGITS "-> logits float32 (B, L, V)"
#define GPT2X_LIKELIEST "-> chosen int32 (B, L)"

GPT2X_OP(decode_fp32, GPT2X_DECODER("float32", "float32") GPT2X_LOGITS) { logits<float>(op); }
GPT2X_OP(decode_bf16, GPT2X_DECODER("int16", "int16") GPT2X_LOGITS) { logits<Bf16>(op); }
GPT2X_OP(decode_int8, GPT2X_DECODER("int8", "int8") GPT2X_LOGITS) { logits<int8_t>(op); }
GPT2X_OP(decode_int4, GPT2X_DECODER("int8", "int8") GPT2X_LOGITS) { logits<Int4, int8_t>(op); }
GPT2X_OP(decode_likeliest_fp32, GPT2X_DECODER("float32", "float32") GPT2X_LIKELIEST) { likeliest<float>(op); }
GPT2X_OP(decode_likeliest_bf16, GPT2X_DECODER("int16", "int16") GPT2X_LIKELIEST) { likeliest<Bf16>(op); }
GPT2X_OP(decode_likeliest_int8, GPT2X_DECODER("int8", "int8") GPT2X_LIKELIEST) { likeliest<int8_t>(op); }
GPT2X_OP(decode_likeliest_int4, GPT2X_DECODER("int8", "int8") GPT2X_LIKELIEST) { likeliest<Int4, int8_t>(op); }

// The beginning of the caches of a slot: each layer's from (N, W, H) into row `slot` of to (B, N, S, H). settings: CopySettings.
GPT2X_OP(fill_slot, "slot int32 (1), settings int32 (5), each from any, to any -> done float32 (1)") {
  const CopySettings& sizes = op.record<CopySettings>("settings");
  *op.floats("done") = 0.0f;
  const int64_t row = static_cast<int64_t>(sizes.head_dim) * sizes.value_size, heads = sizes.num_heads;
  parallel_for(op.num_layers() * heads, [&](int64_t task) {
    const auto layer = op.layer(static_cast<int>(task / heads));
    const int64_t n = task % heads;
    const char* from = layer.template values<char>("from") + n * sizes.prompt_len * row;
    char* to = layer.template values<char>("to") + (*op.ints("slot") * heads + n) * sizes.cache_len * row;
    std::memcpy(to, from, std::min(sizes.prompt_len, sizes.cache_len) * row);
  });
}
