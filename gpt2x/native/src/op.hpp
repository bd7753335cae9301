// What MindSpore gives a custom operator of func_type "aot": inputs, then outputs, by number.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>

#include "huge_pages.hpp"

namespace gpt2x {

struct Op {
  int count;
  void** data;
  int* num_dims;
  int64_t** shapes;

  float* floats(int index) const { return static_cast<float*>(data[index]); }
  const int32_t* ints(int index) const { return static_cast<const int32_t*>(data[index]); }
  int64_t dim(int index, int d) const { return shapes[index][d < 0 ? num_dims[index] + d : d]; }
  int64_t size(int index) const {
    int64_t total = 1;
    for (int d = 0; d < num_dims[index]; ++d) total *= shapes[index][d];
    return total;
  }
};

}  // namespace gpt2x

// A kernel by its name. What it throws becomes a status that MindSpore raises; the reason goes to stderr.
#define GPT2X_OP(name)                                                                                       \
  static void name##_body(const gpt2x::Op& op);                                                              \
  extern "C" int name(int count, void** data, int* num_dims, int64_t** shapes, const char**, void*, void*) { \
    try {                                                                                                    \
      const gpt2x::Op op{count, data, num_dims, shapes};                                                     \
      if (op.size(count - 1) >= (1 << 20)) gpt2x::want_huge_pages(data[count - 1], 4 * op.size(count - 1));  \
      name##_body(op);                                                                                       \
      return 0;                                                                                              \
    } catch (const std::exception& error) {                                                                  \
      std::fprintf(stderr, "gpt2x: %s: %s\n", #name, error.what());                                          \
      return 1;                                                                                              \
    }                                                                                                        \
  }                                                                                                          \
  static void name##_body(const gpt2x::Op& op)
