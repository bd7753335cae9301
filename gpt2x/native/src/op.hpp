// The frame of an operator. MindSpore calls a custom operator of func_type "aot" with inputs, then outputs, by number. Here
// each operator states its signature as a text, and its body addresses operands and sizes by the names in that text:
//
//   GPT2X_OP(linear_dx, "dy float32 (R, N), weight float32 (K, N) -> dx float32 (R, K)") {
//     gemm(..., op.dim("R"), ..., op.floats("dy"), ..., op.floats("dx"), ...);
//   }
//
// A name that is not in the signature, or has a different type there, does not compile. A call with other shapes than the
// signature's is an error at run time. Python has the same texts (gpt2x/native/signatures.py); the library exports its own
// (`gpt2x_interface`), and the two are compared when the library is loaded.
//
// Grammar: NAME TYPE [(SIZES)], separated by commas, "->" before the outputs. A size is a number, a letter, or both (3D, three
// times D). Without sizes any shape is accepted. Inputs between "each" and "->" occur once per layer, for any number of layers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "huge_pages.hpp"

namespace gpt2x {

enum class Type { float32, int32, int16, int8, boolean, any };

struct Size {
  int64_t factor = 1;
  char symbol = 0;                // 0: the size is `factor`
  int operand = 0, dimension = 0;  // where the symbol stands alone first
};

struct Operand {
  std::string_view name;
  Type type = Type::float32;
  int rank = -1;  // -1: any shape
  Size sizes[4] = {};
};

// A parsed signature; errors in the text are errors of compilation.
class Signature {
 public:
  static constexpr int kMost = 32;
  Operand operands[kMost];
  int count = 0;
  int layer_begin = kMost, layer_size = 0;  // operands that occur once per layer

  consteval explicit Signature(std::string_view text) : text_(text) {
    while (!done()) {
      if (skip(" ,->") && layer_begin != kMost && layer_size == 0 && text_[at_ - 2] == '>') layer_size = count - layer_begin;
      if (text_.substr(at_).starts_with("each ")) {
        layer_begin = count;
        at_ += 5;
      }
      operands[count++] = operand();
    }
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < operands[i].rank; ++d)
        if (Size& size = operands[i].sizes[d]; size.symbol != 0) {
          const Size first = find(size.symbol);
          size.operand = first.operand;
          size.dimension = first.dimension;
        }
  }

  consteval int index_of(std::string_view name) const {
    for (int i = 0; i < count; ++i)
      if (operands[i].name == name) return i;
    throw "no operand of this name in the signature";
  }

  consteval int index_of(std::string_view name, Type type) const {
    const int index = index_of(name);
    if (operands[index].type != type) throw "the operand has a different type in the signature";
    return index;
  }

  consteval Size find(char symbol) const {
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < operands[i].rank; ++d)
        if (operands[i].sizes[d].symbol == symbol && operands[i].sizes[d].factor == 1) return {1, symbol, i, d};
    throw "no operand of the signature has this size alone";
  }

 private:
  consteval bool done() const { return at_ >= text_.size(); }
  consteval bool skip(std::string_view chars) {
    const size_t before = at_;
    while (!done() && chars.find(text_[at_]) != std::string_view::npos) ++at_;
    return at_ > before;
  }
  consteval std::string_view word() {
    const size_t begin = at_;
    while (!done() && std::string_view(" ,()").find(text_[at_]) == std::string_view::npos) ++at_;
    if (at_ == begin) throw "a word is missing in the signature";
    return text_.substr(begin, at_ - begin);
  }
  static consteval Type type_of(std::string_view word) {
    if (word == "float32") return Type::float32;
    if (word == "int32") return Type::int32;
    if (word == "int16") return Type::int16;
    if (word == "int8") return Type::int8;
    if (word == "bool") return Type::boolean;
    if (word == "any") return Type::any;
    throw "no such type";
  }
  static consteval Size size_of(std::string_view word) {
    Size size;
    if (word[0] >= '0' && word[0] <= '9') size.factor = 0;
    for (char c : word) {
      if (c >= '0' && c <= '9') size.factor = 10 * size.factor + (c - '0');
      else size.symbol = c;
    }
    return size;
  }
  consteval Operand operand() {
    Operand result;
    result.name = word();
    skip(" ");
    result.type = type_of(word());
    const size_t end = at_;
    skip(" ");
    if (done() || text_[at_] != '(') {
      at_ = end;
      return result;
    }
    ++at_;
    for (result.rank = 0; text_[at_] != ')'; skip(" ,")) result.sizes[result.rank++] = size_of(word());
    ++at_;
    return result;
  }

  std::string_view text_;
  size_t at_ = 0;
};

// A text as a template argument.
template <size_t N>
struct Text {
  char chars[N];
  consteval Text(const char (&text)[N]) { std::copy_n(text, N, chars); }
  constexpr std::string_view view() const { return {chars, N - 1}; }
};

// The operands of one call.
template <Text kText>
class Op {
  static constexpr Signature kSignature{kText.view()};

  struct Name {
    int index;
    consteval Name(const char* name) : index(kSignature.index_of(name)) {}
  };
  template <Type kType>
  struct TypedName {
    int index;
    consteval TypedName(const char* name) : index(kSignature.index_of(name, kType)) {}
  };
  struct Symbol {
    Size size;
    consteval Symbol(const char* symbol) : size(kSignature.find(symbol[0])) {}
  };

 public:
  Op(int count, void** data, int* num_dims, int64_t** shapes) : data_(data), num_dims_(num_dims), shapes_(shapes) {
    const int extra = count - kSignature.count, size = kSignature.layer_size;
    if (extra != 0 && (size == 0 || extra < 0 || extra % size != 0))
      throw std::invalid_argument("wrong number of operands: " + std::string(kText.view()));
    if (size != 0) num_layers_ = 1 + extra / size;
    for (layer_ = 0; layer_ < num_layers_; ++layer_)
      for (int i = 0; i < kSignature.count; ++i)
        if (!fits(i)) throw std::invalid_argument("wrong shape of " + std::string(kSignature.operands[i].name));
    layer_ = 0;
  }

  int num_layers() const { return num_layers_; }

  // These operands, with those of a layer where the signature says "each".
  Op layer(int index) const {
    Op other = *this;
    other.layer_ = index;
    return other;
  }

  float* floats(TypedName<Type::float32> name) const { return static_cast<float*>(data_[place(name.index)]); }
  int32_t* ints(TypedName<Type::int32> name) const { return static_cast<int32_t*>(data_[place(name.index)]); }
  bool flag(TypedName<Type::boolean> name) const { return *static_cast<const bool*>(data_[place(name.index)]); }

  // One of the structs in constants.hpp.
  template <typename Record>
  const Record& record(TypedName<Type::int32> name) const {
    return *static_cast<const Record*>(data_[place(name.index)]);
  }

  // An operand whose type is a template parameter of the body.
  template <typename T>
  T* values(Name name) const { return static_cast<T*>(data_[place(name.index)]); }

  // A size by its letter in the signature.
  int64_t dim(Symbol symbol) const { return shapes_[place(symbol.size.operand)][symbol.size.dimension]; }
  int64_t last_dim(Name name) const { return shapes_[place(name.index)][num_dims_[place(name.index)] - 1]; }
  int64_t size(Name name) const { return size_at(place(name.index)); }

  // Fresh memory of the last output comes in huge pages if it is large.
  void prepare_output() const {
    const int last = place(kSignature.count - 1);
    if (size_at(last) >= (1 << 20)) want_huge_pages(data_[last], sizeof(float) * size_at(last));
  }

 private:
  // Where an operand of the signature is in this call.
  int place(int index) const {
    if (index < kSignature.layer_begin) return index;
    const bool is_output = index >= kSignature.layer_begin + kSignature.layer_size;
    return index + kSignature.layer_size * (is_output ? num_layers_ - 1 : layer_);
  }
  int64_t size_at(int index) const {
    int64_t total = 1;
    for (int d = 0; d < num_dims_[index]; ++d) total *= shapes_[index][d];
    return total;
  }
  bool fits(int index) const {
    const Operand& operand = kSignature.operands[index];
    if (operand.rank < 0) return true;
    const int at = place(index);
    if (operand.rank != num_dims_[at]) return false;
    for (int d = 0; d < operand.rank; ++d) {
      const Size& size = operand.sizes[d];
      const int64_t unit = size.symbol == 0 ? 1 : shapes_[place(size.operand)][size.dimension];
      if (shapes_[at][d] != size.factor * unit) return false;
    }
    return true;
  }

  void** data_;
  int* num_dims_;
  int64_t** shapes_;
  int num_layers_ = 1, layer_ = 0;
};

// Name and signature of every operator of the library, for `gpt2x_interface`.
inline std::vector<std::string>& registry() {
  static std::vector<std::string> lines;
  return lines;
}

struct Registration {
  Registration(const char* name, const char* signature) { registry().push_back("operator " + std::string(name) + " " + signature); }
};

}  // namespace gpt2x

// Defines an operator. An exception becomes a status that MindSpore raises; the reason goes to stderr.
#define GPT2X_OP(name, signature)                                                                            \
  static void name##_body(const gpt2x::Op<signature>& op);                                                   \
  static const gpt2x::Registration name##_registration(#name, signature);                                    \
  extern "C" int name(int count, void** data, int* num_dims, int64_t** shapes, const char**, void*, void*) { \
    try {                                                                                                    \
      const gpt2x::Op<signature> op(count, data, num_dims, shapes);                                          \
      op.prepare_output();                                                                                   \
      name##_body(op);                                                                                       \
      return 0;                                                                                              \
    } catch (const std::exception& error) {                                                                  \
      std::fprintf(stderr, "gpt2x: %s: %s\n", #name, error.what());                                          \
      return 1;                                                                                              \
    }                                                                                                        \
  }                                                                                                          \
  static void name##_body(const gpt2x::Op<signature>& op)
