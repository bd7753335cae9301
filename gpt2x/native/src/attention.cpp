// Causal attention by blocks of queries. Only one block's scores exist at a time, without keys after its last query. Backward
// computes them again from their log-sum-exp (Dao et al., arXiv:2205.14135).
//
// Legend: B batch, T tokens, N heads, H head dim, D = N H. Queries, keys and values of a token stand side by side (3D).
#include <algorithm>
#include <limits>

#include "attention.hpp"
#include "gemm.hpp"
#include "op.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kBlock = 6 * kTileRows;  // queries whose scores are computed together

// The operands that both directions share. starts: the first key that each token sees; rows: number of each token for dropout.
// Both are (B, T) values, or any single one if they are unused.
#define GPT2X_ATTENTION_OPERANDS "starts int32, key int32, rows int32, settings int32 (8)"

AttentionShape shape_of(const auto& op) {
  const int64_t heads = op.dim("N");
  return AttentionShape(op.dim("B"), op.dim("T"), heads, op.dim("D") / heads, op.ints("starts"), op.ints("key"), op.ints("rows"),
                        op.template record<AttentionSettings>("settings"));
}

// Rows (count, H) at `stride`, scaled, to (count, padded H).
void pack_rows(const float* from, int64_t stride, int64_t count, const AttentionShape& s, float scale, float* to) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t h = 0; h < s.head_dim; ++h) to[r * s.padded_dim + h] = from[r * stride + h] * scale;
    for (int64_t h = s.head_dim; h < s.padded_dim; ++h) to[r * s.padded_dim + h] = 0.0f;
  }
}

// Rows (count, H) at `stride` to panels of kTileColumns columns of their transpose, each (H, kTileColumns).
void pack_transposed(const float* from, int64_t stride, int64_t count, int64_t head_dim, float* to) {
  for (int64_t first = 0; first < count; first += kTileColumns, to += head_dim * kTileColumns) {
    const int64_t width = std::min<int64_t>(kTileColumns, count - first);
    for (int64_t c = 0; c < kTileColumns; ++c)
      for (int64_t h = 0; h < head_dim; ++h)
        to[h * kTileColumns + c] = c < width ? from[(first + c) * stride + h] : 0.0f;
  }
}

// left (num_rows, H) times panels of `pack_transposed` -> (num_rows, at least num_columns) at `stride`
void times_panels(const float* left, int64_t num_rows, const AttentionShape& s, const float* panels, int64_t num_columns, float* to,
                  int64_t stride) {
  for (int64_t c = 0; c < num_columns; c += kTileColumns, panels += s.head_dim * kTileColumns)
    for (int64_t r = 0; r < num_rows; r += kTileRows)
      any_tile(std::min<int64_t>(kTileRows, num_rows - r), kTileColumns, s.head_dim, left + r * s.padded_dim, s.padded_dim, 1,
               panels, kTileColumns, to + r * stride + c, stride, false);
}

// weights (num_rows, k), whose row r has r + first_key_end keys, times rows (k, padded H) -> (num_rows, padded H)
void times_rows(const float* weights, int64_t stride, int64_t num_rows, int64_t first_key_end, const AttentionShape& s,
                const float* right, float* to) {
  for (int64_t h = 0; h < s.padded_dim; h += kTileColumns)
    for (int64_t r = 0; r < num_rows; r += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, num_rows - r);
      any_tile(count, std::min<int64_t>(kTileColumns, s.padded_dim - h), first_key_end + r + count - 1, weights + r * stride,
               stride, 1, right + h, s.padded_dim, to + r * s.padded_dim + h, s.padded_dim, false);
    }
}

// transpose of weights (num_rows, num_columns) times rows (num_rows, padded H), added to (num_columns, padded H)
void add_transposed(const float* weights, int64_t stride, int64_t num_rows, int64_t num_columns, const AttentionShape& s,
                    const float* right, float* to) {
  for (int64_t h = 0; h < s.padded_dim; h += kTileColumns)
    for (int64_t c = 0; c < num_columns; c += kTileRows)
      any_tile(std::min<int64_t>(kTileRows, num_columns - c), std::min<int64_t>(kTileColumns, s.padded_dim - h), num_rows,
               weights + c, 1, stride, right + h, s.padded_dim, to + c * s.padded_dim + h, s.padded_dim, true);
}

int64_t score_stride(const AttentionShape& s) { return s.padded_length + kLanes; }  // puts rows on different cache sets

}  // namespace

namespace gpt2x {

AttentionShape::AttentionShape(int64_t batch, int64_t length, int64_t heads, int64_t head_dim, const int32_t* starts,
                               const int32_t* key, const int32_t* rows, const AttentionSettings& settings)
    : batch(batch), length(length), heads(heads), head_dim(head_dim), hidden(heads * head_dim),
      padded_dim(round_up(head_dim, kLanes)), padded_length(round_up(length, kTileColumns)), starts(starts), rows(rows),
      settings(settings), mask(*key, settings.mask, settings.has_dropout ? length : 0) {}

void attend(const AttentionShape& s, const float* qkv, float* out, float* lse) {
  const float factor = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  const int64_t stride = 3 * s.hidden, pairs = s.batch * s.heads;
  const int64_t parts = std::clamp<int64_t>(2 * num_threads() / std::max<int64_t>(1, pairs), 1, (s.length + kBlock - 1) / kBlock);
  const int64_t queries = round_up((s.length + parts - 1) / parts, kBlock);
  parallel_for(pairs * parts, [&](int64_t task) {
    const int64_t pair = task % pairs, part = parts - 1 - task / pairs;  // the longest first
    const int64_t b = pair / s.heads, n = pair % s.heads;
    const int64_t first = part * queries, last = std::min(s.length, first + queries);
    if (first >= last) return;
    const float* q = qkv + b * s.length * stride + n * s.head_dim;
    static thread_local Workspace workspace;
    float* keys = workspace.get(s.padded_length * (s.head_dim + s.padded_dim) + kBlock * (2 * s.padded_dim + score_stride(s)));
    float* values = keys + s.padded_length * s.head_dim;
    float* block = values + s.padded_length * s.padded_dim;
    float* sums = block + kBlock * s.padded_dim;
    float* scores = sums + kBlock * s.padded_dim;
    pack_transposed(q + s.hidden, stride, last, s.head_dim, keys);
    pack_rows(q + 2 * s.hidden, stride, last, s, 1.0f, values);
    for (int64_t start = first; start < last; start += kBlock) {
      const int64_t count = std::min(kBlock, last - start);
      pack_rows(q + start * stride, stride, count, s, factor, block);
      times_panels(block, count, s, keys, start + count, scores, score_stride(s));
      float scale[kBlock];
      for (int64_t r = 0; r < count; ++r) {
        const int64_t query = start + r, begin = s.begin(b, query);
        float *row = scores + r * score_stride(s), largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
#pragma omp simd reduction(max : largest)
        for (int64_t k = begin; k <= query; ++k) largest = row[k] > largest ? row[k] : largest;
        std::fill(row, row + begin, 0.0f);
#pragma omp simd reduction(+ : sum)
        for (int64_t k = begin; k <= query; ++k) sum += row[k] = fast_exp(row[k] - largest);
        std::fill(row + query + 1, row + start + count, 0.0f);
        if (lse != nullptr) lse[pair * s.length + query] = largest + std::log(sum);
        scale[r] = 1.0f / sum;
        if (s.settings.has_dropout) {
          const auto keep = s.mask_row(b, n, query);
#pragma omp simd
          for (int64_t k = begin; k <= query; ++k) row[k] *= keep(k);
        }
      }
      times_rows(scores, score_stride(s), count, start + 1, s, values, sums);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t h = 0; h < s.head_dim; ++h)
          out[(b * s.length + start + r) * s.hidden + n * s.head_dim + h] = sums[r * s.padded_dim + h] * scale[r];
    }
  });
}

}  // namespace gpt2x

// lse: log-sum-exp of each query's scores
GPT2X_OP(attention, "qkv float32 (B, T, 3D), " GPT2X_ATTENTION_OPERANDS " -> out float32 (B, T, D), lse float32 (B, N, T)") {
  attend(shape_of(op), op.floats("qkv"), op.floats("out"), op.floats("lse"));
}

GPT2X_OP(attention_grad, "dout float32 (B, T, D), qkv float32 (B, T, 3D), out float32 (B, T, D), lse float32 (B, N, T), "
                         GPT2X_ATTENTION_OPERANDS " -> dqkv float32 (B, T, 3D)") {
  const AttentionShape s = shape_of(op);
  const float *dout = op.floats("dout"), *qkv = op.floats("qkv"), *out = op.floats("out"), *lse = op.floats("lse");
  const float factor = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  float* dqkv = op.floats("dqkv");
  const int64_t stride = 3 * s.hidden, rows = s.padded_length * s.padded_dim, block_size = kBlock * s.padded_dim;
  parallel_for(s.batch * s.heads, [&](int64_t pair) {
    const int64_t b = pair / s.heads, n = pair % s.heads;
    const float* q = qkv + b * s.length * stride + n * s.head_dim;
    float* dq = dqkv + b * s.length * stride + n * s.head_dim;
    static thread_local Workspace workspace;
    float* keys = workspace.get(2 * s.padded_length * s.head_dim + 3 * rows + 3 * block_size + 2 * kBlock * score_stride(s));
    float* values = keys + s.padded_length * s.head_dim;
    float* key_rows = values + s.padded_length * s.head_dim;
    float* dkeys = key_rows + rows;
    float* dvalues = dkeys + rows;
    float* block = dvalues + rows;  // queries, scaled
    float* slopes = block + block_size;
    float* sums = slopes + block_size;
    float* weights = sums + block_size;
    float* dweights = weights + kBlock * score_stride(s);
    pack_transposed(q + s.hidden, stride, s.length, s.head_dim, keys);
    pack_transposed(q + 2 * s.hidden, stride, s.length, s.head_dim, values);
    pack_rows(q + s.hidden, stride, s.length, s, 1.0f, key_rows);
    std::fill(dkeys, dkeys + 2 * rows, 0.0f);
    for (int64_t start = 0; start < s.length; start += kBlock) {
      const int64_t count = std::min(kBlock, s.length - start), end = start + count;
      const int64_t at = (b * s.length + start) * s.hidden + n * s.head_dim;
      pack_rows(q + start * stride, stride, count, s, factor, block);
      pack_rows(dout + at, s.hidden, count, s, 1.0f, slopes);
      times_panels(block, count, s, keys, end, weights, score_stride(s));
      times_panels(slopes, count, s, values, end, dweights, score_stride(s));
      for (int64_t r = 0; r < count; ++r) {
        const int64_t query = start + r, begin = s.begin(b, query);
        float *p = weights + r * score_stride(s), *dp = dweights + r * score_stride(s), delta = 0.0f;
        const float *o = out + at + r * s.hidden, *slope = slopes + r * s.padded_dim, sum = lse[pair * s.length + query];
#pragma omp simd reduction(+ : delta)
        for (int64_t h = 0; h < s.head_dim; ++h) delta += o[h] * slope[h];
        std::fill(p, p + begin, 0.0f);
        std::fill(dp, dp + begin, 0.0f);
        std::fill(p + query + 1, p + end, 0.0f);
        std::fill(dp + query + 1, dp + end, 0.0f);
        if (s.settings.has_dropout) {
          const auto keep = s.mask_row(b, n, query);
#pragma omp simd
          for (int64_t k = begin; k <= query; ++k) {
            const float multiplier = keep(k), weight = fast_exp(p[k] - sum);
            dp[k] = weight * (dp[k] * multiplier - delta);
            p[k] = weight * multiplier;
          }
        } else {
#pragma omp simd
          for (int64_t k = begin; k <= query; ++k) {
            p[k] = fast_exp(p[k] - sum);
            dp[k] = p[k] * (dp[k] - delta);
          }
        }
      }
      add_transposed(weights, score_stride(s), count, end, s, slopes, dvalues);
      add_transposed(dweights, score_stride(s), count, end, s, block, dkeys);
      times_rows(dweights, score_stride(s), count, start + 1, s, key_rows, sums);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t h = 0; h < s.head_dim; ++h) dq[(start + r) * stride + h] = sums[r * s.padded_dim + h] * factor;
    }
    for (int64_t t = 0; t < s.length; ++t)
      for (int64_t h = 0; h < s.head_dim; ++h) {
        dq[t * stride + s.hidden + h] = dkeys[t * s.padded_dim + h];
        dq[t * stride + 2 * s.hidden + h] = dvalues[t * s.padded_dim + h];
      }
  });
}
