// Memory that kernels keep from call to call: fresh pages cost more than what is computed in them.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "simd.hpp"

namespace gpt2x {

class Workspace {
 public:
  // At least `count` floats, aligned to a cache line; what was in it may be gone.
  float* get(int64_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;
      const size_t bytes = round_up(count * sizeof(float), kPage);
      data_ = static_cast<float*>(std::aligned_alloc(kPage, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      madvise(data_, bytes, MADV_HUGEPAGE);
      capacity_ = count;
    }
    return data_;
  }
  ~Workspace() { std::free(data_); }

 private:
  static constexpr size_t kPage = 2 << 20;
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace gpt2x
