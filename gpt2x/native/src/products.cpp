#include "products.hpp"

#include <mutex>

#include "parallel.hpp"
#include "workspace.hpp"

namespace gpt2x {

void round_in_parallel(int64_t count, const float* x, Bf16* y) {
  parallel_ranges(count, 1 << 15, [&](int64_t begin, int64_t end) { round_to_bf16(end - begin, x + begin, y + begin); });
}

void gemm_bf16(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
               const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  static std::mutex turn;  // MindSpore computes operators that do not depend on each other at the same time
  static Workspace left, right;
  std::lock_guard<std::mutex> lock(turn);
  Bf16 *narrow_a = left.get<Bf16>(m * k), *narrow_b = right.get<Bf16>(k * n);
  round_in_parallel(m * k, a, narrow_a);
  round_in_parallel(k * n, b, narrow_b);
  multiply_bf16(transpose_a, transpose_b, m, n, k, narrow_a, lda, narrow_b, ldb, beta != 0.0f, c, ldc);
}

}  // namespace gpt2x
