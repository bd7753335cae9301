// Memory that kernels keep from call to call. Touching fresh pages costs more than the computation in them.
#pragma once

#include <cstdlib>
#include <new>

#include "huge_pages.hpp"
#include "simd.hpp"

namespace gpt2x {

class Workspace {
 public:
  // Return at least `count` values, aligned to a cache line. Earlier contents may be lost.
  template <typename T = float>
  T* get(int64_t count) {
    const int64_t bytes = round_up(count * sizeof(T), kHugePage);
    if (bytes > capacity_) {
      std::free(data_);
      capacity_ = 0;
      data_ = std::aligned_alloc(kHugePage, bytes);
      if (data_ == nullptr) throw std::bad_alloc();
      want_huge_pages(data_, bytes);
      capacity_ = bytes;
    }
    return static_cast<T*>(data_);
  }
  ~Workspace() { std::free(data_); }

 private:
  void* data_ = nullptr;
  int64_t capacity_ = 0;  // bytes
};

}  // namespace gpt2x
