#include "gemm.hpp"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "onednn.hpp"
#include "parallel.hpp"

namespace gpt2x {
namespace {

// dnnl_threadpool_interop_sgemm of oneDNN 3.10 (include/oneapi/dnnl/dnnl_threadpool.h), row-major
using Sgemm = int (*)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                      float*, int64_t, void*);
Sgemm sgemm = nullptr;

}  // namespace

bool open_onednn(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
  sgemm = reinterpret_cast<Sgemm>(dlsym(library, "dnnl_threadpool_interop_sgemm"));
  open_primitives(library);
  return sgemm != nullptr;
}

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  const int status = sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, 1.0f, a, lda, b, ldb, beta, c,
                           ldc, pool());
  if (status != 0) throw std::runtime_error("oneDNN's sgemm failed with status " + std::to_string(status));
}

}  // namespace gpt2x
