// Matrix products of narrow types by oneDNN's primitives, which use the processor's own instructions: AMX, AVX512-BF16, VNNI.
#pragma once

#include <cstdint>

namespace gpt2x {

struct Bf16 {
  uint16_t bits;
};

// Take the primitives from oneDNN, opened by `dlopen`; without them the functions below say that nothing is fast.
void open_primitives(void* library);

// Whether oneDNN multiplies bf16, or uint8 by int8, by instructions that this processor has for it. Otherwise fp32 is faster.
bool has_fast_bf16();
bool has_fast_int8();

// C (m, n) = op(A) (m, k) op(B) (k, n), or C += that; row-major with leading dimensions, sums in fp32.
void multiply_bf16(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const Bf16* a, int64_t lda,
                   const Bf16* b, int64_t ldb, bool accumulate, float* c, int64_t ldc);

// C (m, n) = A (m, k) B (k, n) where B is in panels (panels.hpp); k and n without the panels' padding.
void multiply_panels(int64_t m, int64_t n, int64_t k, const Bf16* a, const Bf16* b, float* c);
void multiply_panels(int64_t m, int64_t n, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c);

}  // namespace gpt2x
