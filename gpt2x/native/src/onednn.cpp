// Names, numbers and signatures are those of oneDNN 3.10's C interface (include/oneapi/dnnl/dnnl.h, dnnl_types.h), the release in
// MindSpore 2.10.
#include "onednn.hpp"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include "parallel.hpp"

namespace gpt2x {
namespace {

enum DataType { kBf16 = 2, kFp32 = 3, kInt32 = 4, kInt8 = 5, kUint8 = 6 };
enum Query { kImplementation = 8, kInnerBlocks = 264 };
enum Argument { kSource = 1, kDestination = 17, kWeights = 33 };
constexpr int kCpu = 1;
constexpr int kBf16Panels = 384, kInt8Panels = 388;  // format tags BA16a64b2a and BA16a64b4a

using Handle = void*;
using Dims = int64_t[12];

struct Execution {  // dnnl_exec_arg_t
  int argument;
  Handle memory;
};

struct Functions {
  int (*engine_create)(Handle*, int, size_t) = nullptr;
  int (*stream_create)(Handle*, Handle, void*) = nullptr;
  int (*desc_with_strides)(Handle*, int, const int64_t*, int, const int64_t*) = nullptr;
  int (*desc_with_tag)(Handle*, int, const int64_t*, int, int) = nullptr;
  int (*desc_query)(Handle, int, void*) = nullptr;
  int (*desc_destroy)(Handle) = nullptr;
  int (*attributes_create)(Handle*) = nullptr;
  int (*attributes_set_post_ops)(Handle, Handle) = nullptr;
  int (*attributes_destroy)(Handle) = nullptr;
  int (*post_ops_create)(Handle*) = nullptr;
  int (*post_ops_append_sum)(Handle, float, int32_t, int) = nullptr;
  int (*post_ops_destroy)(Handle) = nullptr;
  int (*matmul_create)(Handle*, Handle, Handle, Handle, Handle, Handle, Handle) = nullptr;
  int (*primitive_query)(Handle, int, int, void*) = nullptr;
  int (*primitive_create)(Handle*, Handle) = nullptr;
  int (*primitive_desc_destroy)(Handle) = nullptr;
  int (*memory_create)(Handle*, Handle, Handle, void*) = nullptr;
  int (*memory_set)(Handle, void*) = nullptr;
  int (*execute)(Handle, Handle, int, const Execution*) = nullptr;
} dnnl;

Handle engine = nullptr, stream = nullptr;

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string("oneDNN: ") + what + " failed with status " + std::to_string(status));
}

enum class Layout { plain, transposed, accumulated, bf16_panels, int8_panels };

struct Matrix {
  int type;
  int64_t rows, columns;
  Layout layout = Layout::plain;
  int64_t stride = 0;  // from one stored row to the next; 0: rows have no gaps
  auto operator<=>(const Matrix&) const = default;
};

Handle describe(const Matrix& matrix) {
  const Dims dims = {matrix.rows, matrix.columns};
  Handle desc = nullptr;
  if (matrix.layout == Layout::bf16_panels || matrix.layout == Layout::int8_panels) {
    const int tag = matrix.layout == Layout::bf16_panels ? kBf16Panels : kInt8Panels;
    check(dnnl.desc_with_tag(&desc, 2, dims, matrix.type, tag), "memory_desc_create_with_tag");
    const int64_t last = matrix.layout == Layout::bf16_panels ? 2 : 4;
    const Dims* blocks = nullptr;  // tags are numbered, and a different release may number them differently
    check(dnnl.desc_query(desc, kInnerBlocks, &blocks), "memory_desc_query");
    if ((*blocks)[0] != 16 || (*blocks)[1] != 64 || (*blocks)[2] != last) throw std::runtime_error("oneDNN numbers formats otherwise");
    return desc;
  }
  const bool is_transposed = matrix.layout == Layout::transposed;  // stored as (columns, rows)
  const int64_t stride = matrix.stride != 0 ? matrix.stride : is_transposed ? matrix.rows : matrix.columns;
  const Dims strides = {is_transposed ? 1 : stride, is_transposed ? stride : 1};
  check(dnnl.desc_with_strides(&desc, 2, dims, matrix.type, strides), "memory_desc_create_with_strides");
  return desc;
}

// A product of one shape, compiled once.
class Product {
 public:
  Product(const Matrix& a, const Matrix& b, const Matrix& c) {
    Handle descs[3] = {describe(a), describe(b), describe(c)}, desc = nullptr;
    const Handle attributes = c.layout == Layout::accumulated ? accumulation() : nullptr;
    check(dnnl.matmul_create(&desc, engine, descs[0], descs[1], nullptr, descs[2], attributes), "matmul_primitive_desc_create");
    const char* name = "";
    dnnl.primitive_query(desc, kImplementation, 0, &name);
    is_fast_ = std::string_view(name).starts_with("brg");
    check(dnnl.primitive_create(&primitive_, desc), "primitive_create");
    dnnl.primitive_desc_destroy(desc);
    if (attributes != nullptr) dnnl.attributes_destroy(attributes);
    for (int i = 0; i < 3; ++i) {
      check(dnnl.memory_create(&memories_[i], descs[i], engine, nullptr), "memory_create");
      dnnl.desc_destroy(descs[i]);
    }
  }

  // Whether oneDNN has code for the processor's instructions, and not a loop for any.
  bool is_fast() const { return is_fast_; }

  void run(const void* a, const void* b, void* c) {
    check(dnnl.memory_set(memories_[0], const_cast<void*>(a)), "memory_set_data_handle");
    check(dnnl.memory_set(memories_[1], const_cast<void*>(b)), "memory_set_data_handle");
    check(dnnl.memory_set(memories_[2], c), "memory_set_data_handle");
    const Execution arguments[] = {{kSource, memories_[0]}, {kWeights, memories_[1]}, {kDestination, memories_[2]}};
    check(dnnl.execute(primitive_, stream, 3, arguments), "primitive_execute");
  }

 private:
  // Attributes by which a product is added to what its destination has.
  static Handle accumulation() {
    Handle attributes = nullptr, steps = nullptr;
    check(dnnl.attributes_create(&attributes), "primitive_attr_create");
    check(dnnl.post_ops_create(&steps), "post_ops_create");
    check(dnnl.post_ops_append_sum(steps, 1.0f, 0, 0), "post_ops_append_sum");
    check(dnnl.attributes_set_post_ops(attributes, steps), "primitive_attr_set_post_ops");
    dnnl.post_ops_destroy(steps);
    return attributes;
  }

  Handle primitive_ = nullptr, memories_[3] = {};
  bool is_fast_ = false;
};

std::mutex turn;

Product& product(const Matrix& a, const Matrix& b, const Matrix& c) {
  static std::map<std::tuple<Matrix, Matrix, Matrix>, Product> products;
  const auto key = std::make_tuple(a, b, c);
  const auto place = products.find(key);
  return place != products.end() ? place->second : products.emplace(key, Product(a, b, c)).first->second;
}

void multiply(const Matrix& a, const Matrix& b, const Matrix& c, const void* from_a, const void* from_b, void* to) {
  std::lock_guard<std::mutex> lock(turn);
  product(a, b, c).run(from_a, from_b, to);
}

bool is_fast(const Matrix& a, const Matrix& b, const Matrix& c) {
  if (engine == nullptr) return false;
  std::lock_guard<std::mutex> lock(turn);
  try {
    return product(a, b, c).is_fast();
  } catch (const std::runtime_error&) {
    return false;
  }
}

template <typename F>
bool take(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, (std::string("dnnl_") + name).c_str()));
  return function != nullptr;
}

}  // namespace

void open_primitives(void* library) {
  if (engine != nullptr) return;
  const bool is_complete =
      take(library, "engine_create", dnnl.engine_create) &&
      take(library, "threadpool_interop_stream_create", dnnl.stream_create) &&
      take(library, "memory_desc_create_with_strides", dnnl.desc_with_strides) &&
      take(library, "memory_desc_create_with_tag", dnnl.desc_with_tag) && take(library, "memory_desc_query", dnnl.desc_query) &&
      take(library, "memory_desc_destroy", dnnl.desc_destroy) &&
      take(library, "primitive_attr_create", dnnl.attributes_create) &&
      take(library, "primitive_attr_set_post_ops", dnnl.attributes_set_post_ops) &&
      take(library, "primitive_attr_destroy", dnnl.attributes_destroy) &&
      take(library, "post_ops_create", dnnl.post_ops_create) &&
      take(library, "post_ops_append_sum", dnnl.post_ops_append_sum) &&
      take(library, "post_ops_destroy", dnnl.post_ops_destroy) &&
      take(library, "matmul_primitive_desc_create", dnnl.matmul_create) &&
      take(library, "primitive_desc_query", dnnl.primitive_query) && take(library, "primitive_create", dnnl.primitive_create) &&
      take(library, "primitive_desc_destroy", dnnl.primitive_desc_destroy) &&
      take(library, "memory_create", dnnl.memory_create) && take(library, "memory_set_data_handle", dnnl.memory_set) &&
      take(library, "primitive_execute", dnnl.execute);
  Handle made = nullptr;
  if (!is_complete || dnnl.engine_create(&made, kCpu, 0) != 0 || dnnl.stream_create(&stream, made, pool()) != 0) return;
  engine = made;
}

bool has_fast_bf16() {
  static const bool found = is_fast({kBf16, 64, 256}, {kBf16, 256, 64, Layout::bf16_panels}, {kFp32, 64, 64});
  return found;
}

bool has_fast_int8() {
  static const bool found = is_fast({kUint8, 64, 256}, {kInt8, 256, 64, Layout::int8_panels}, {kInt32, 64, 64});
  return found;
}

void multiply_bf16(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const Bf16* a, int64_t lda,
                   const Bf16* b, int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  const auto layout = [](bool is_transposed) { return is_transposed ? Layout::transposed : Layout::plain; };
  multiply({kBf16, m, k, layout(transpose_a), lda}, {kBf16, k, n, layout(transpose_b), ldb},
           {kFp32, m, n, accumulate ? Layout::accumulated : Layout::plain, ldc}, a, b, c);
}

void multiply_panels(int64_t m, int64_t n, int64_t k, const Bf16* a, const Bf16* b, float* c) {
  multiply({kBf16, m, k}, {kBf16, k, n, Layout::bf16_panels}, {kFp32, m, n}, a, b, c);
}

void multiply_panels(int64_t m, int64_t n, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c) {
  multiply({kUint8, m, k}, {kInt8, k, n, Layout::int8_panels}, {kInt32, m, n}, a, b, c);
}

}  // namespace gpt2x
