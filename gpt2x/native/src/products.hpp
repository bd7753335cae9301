// Matrix products whose operands are rounded to bf16 before they are multiplied.
#pragma once

#include <cstdint>
#include <cstring>

#include "onednn.hpp"

namespace gpt2x {

// The nearest bf16, ties to even; NaN stays NaN.
inline uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? nan : nearest);
}

inline void round_to_bf16(int64_t count, const float* x, Bf16* y) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i].bits = bf16_bits(x[i]);
}

// The same on all threads.
void round_in_parallel(int64_t count, const float* x, Bf16* y);

// As `gemm`, with A and B rounded to bf16; their rows have no gaps. beta is 0 or 1.
void gemm_bf16(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
               const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

}  // namespace gpt2x
