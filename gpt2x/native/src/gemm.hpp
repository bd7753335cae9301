// Matrix products: large ones by oneDNN, the tiles of attention by a kernel here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "simd.hpp"

namespace gpt2x {

// Take sgemm, and if possible the primitives (onednn.hpp), from the oneDNN library at `path`; false if it has no sgemm.
bool open_onednn(const char* path);

// C (m, n) = op(A) (m, k) op(B) (k, n) + beta C, row-major with leading dimensions, by oneDNN's sgemm on all threads.
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

// C (R, N) (+)= A (R, k) B (k, N) for R <= 6 and N of NV vectors; A's element (i, p) is a[i * rows + p * columns].
template <int R, int NV>
inline void tile(int64_t k, const float* a, int64_t rows, int64_t columns, const float* b, int64_t ldb, float* c,
                 int64_t ldc, bool accumulate) {
  Vec sum[R][NV];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[i][j] = accumulate ? load(c + i * ldc + j * kLanes) : Vec{};
  for (int64_t p = 0; p < k; ++p) {
    Vec right[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) right[j] = load(b + p * ldb + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const float left = a[i * rows + p * columns];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) store(c + i * ldc + j * kLanes, sum[i][j]);
}

constexpr int kTileRows = 6;
constexpr int kTileVecs = kLanes == 4 ? 2 : (kLanes == 8 ? 2 : 4);  // 6 x 2 of 16 registers, 6 x 4 of 32
constexpr int kTileColumns = kTileVecs * kLanes;

// As `tile` for up to kTileRows rows and kTileColumns columns, a multiple of kLanes.
inline void any_tile(int64_t num_rows, int64_t num_columns, int64_t k, const float* a, int64_t rows, int64_t columns,
                     const float* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  const auto one = [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    switch (num_rows) {
      case 1: return tile<1, NV>(k, a, rows, columns, b, ldb, c, ldc, accumulate);
      case 2: return tile<2, NV>(k, a, rows, columns, b, ldb, c, ldc, accumulate);
      case 3: return tile<3, NV>(k, a, rows, columns, b, ldb, c, ldc, accumulate);
      case 4: return tile<4, NV>(k, a, rows, columns, b, ldb, c, ldc, accumulate);
      case 5: return tile<5, NV>(k, a, rows, columns, b, ldb, c, ldc, accumulate);
      default: return tile<6, NV>(k, a, rows, columns, b, ldb, c, ldc, accumulate);
    }
  };
  switch (num_columns / kLanes) {
    case 1: return one(std::integral_constant<int, 1>{});
    case 2: return one(std::integral_constant<int, 2>{});
#if defined(__AVX512F__)
    case 3: return one(std::integral_constant<int, 3>{});
    default: return one(std::integral_constant<int, 4>{});
#endif
  }
}

}  // namespace gpt2x
