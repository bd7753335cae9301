#pragma once

#include <cstdint>

#include "dropout.hpp"

namespace gpt2x {

// What attention of a batch needs to know. Legend: B batch, T tokens, N heads, H head dim.
struct AttentionShape {
  int64_t batch, length, heads, head_dim, hidden, padded_dim, padded_length;
  const int32_t *starts, *rows, *settings;  // as attention.cpp's operators take them
  bool has_starts, has_dropout;
  DropoutMask mask;

  AttentionShape(int64_t batch, int64_t length, int64_t heads, int64_t head_dim, const int32_t* starts,
                 const int32_t* key, const int32_t* rows, const int32_t* settings);

  // The first key that a query sees.
  int64_t begin(int64_t b, int64_t query) const { return has_starts ? starts[b * length + query] : 0; }
  [[gnu::always_inline]] DropoutMask::Row mask_row(int64_t b, int64_t n, int64_t query) const {
    return mask.row(rows[b * length + query] * settings[3] + settings[2] + static_cast<int32_t>(n));
  }
};

// qkv (B, T, 3D) -> out (B, T, D); lse (B, N, T) too where it is not null.
void attend(const AttentionShape& shape, const float* qkv, float* out, float* lse);

}  // namespace gpt2x
