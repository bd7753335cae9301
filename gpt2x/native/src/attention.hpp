#pragma once

#include <cstdint>

#include "dropout.hpp"

namespace gpt2x {

// Sizes and masks of the attention of a batch. Legend: B batch, T tokens, N heads, H head dim.
struct AttentionShape {
  int64_t batch, length, heads, head_dim, hidden, padded_dim, padded_length;
  const int32_t *starts, *rows;  // operands of attention.cpp
  const AttentionSettings& settings;
  DropoutMask mask;

  AttentionShape(int64_t batch, int64_t length, int64_t heads, int64_t head_dim, const int32_t* starts,
                 const int32_t* key, const int32_t* rows, const AttentionSettings& settings);

  // The first key that a query sees.
  int64_t begin(int64_t b, int64_t query) const { return settings.has_starts ? starts[b * length + query] : 0; }
  [[gnu::always_inline]] DropoutMask::Row mask_row(int64_t b, int64_t n, int64_t query) const {
    return mask.row(rows[b * length + query] * settings.all_heads + settings.first_head + static_cast<int32_t>(n));
  }
};

// qkv (B, T, 3D) -> out (B, T, D); lse (B, N, T), the log-sum-exp of the scores, if it is not null.
void attend(const AttentionShape& shape, const float* qkv, float* out, float* lse);

}  // namespace gpt2x
