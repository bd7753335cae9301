// Memory that kernels keep from call to call. Touching fresh pages costs more than the computation in them.
#pragma once

#include <cstdlib>
#include <new>

#include "huge_pages.hpp"
#include "simd.hpp"

namespace gpt2x {

class Workspace {
 public:
  // Return at least `count` floats, aligned to a cache line. Earlier contents may be lost.
  float* get(int64_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;
      const size_t bytes = round_up(count * sizeof(float), kHugePage);
      data_ = static_cast<float*>(std::aligned_alloc(kHugePage, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      want_huge_pages(data_, bytes);
      capacity_ = count;
    }
    return data_;
  }
  ~Workspace() { std::free(data_); }

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace gpt2x
