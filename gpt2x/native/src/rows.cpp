// Linear layers, layer normalisation, activations, dropout. Legend: R rows, D hidden, K in, N out.
#include <algorithm>
#include <vector>

#include "dropout.hpp"
#include "gemm.hpp"
#include "op.hpp"
#include "parallel.hpp"
#include "products.hpp"
#include "workspace.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kElements = 1 << 15;  // values per task of an elementwise loop
constexpr int64_t kChunks = 32;         // partial sums over rows; a fixed number, so that results do not depend on the threads

int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, kElements / width); }

// x (R, N) -> the sums of its columns (N)
void column_sums(const float* x, int64_t num_rows, int64_t width, float* sums) {
  parallel_ranges(width, 256, [&](int64_t begin, int64_t end) {
    std::fill(sums + begin, sums + end, 0.0f);
    for (int64_t r = 0; r < num_rows; ++r) {
      const float* row = x + r * width;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) sums[c] += row[c];
    }
  });
}

template <typename F>
void for_each(int64_t count, F f) {
  parallel_ranges(count, kElements, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// One of `gemm` and `gemm_bf16`: products of linears in fp32, or of operands that are rounded to bf16.
using Gemm = decltype(gemm);

#define GPT2X_LINEAR "x float32 (R, K), weight float32 (K, N) -> y float32 (R, N)"
#define GPT2X_LINEAR_BIAS "x float32 (R, K), weight float32 (K, N), bias float32 (N) -> y float32 (R, N)"
#define GPT2X_LINEAR_DX "dy float32 (R, N), weight float32 (K, N) -> dx float32 (R, K)"
#define GPT2X_LINEAR_DW "x float32 (R, K), dy float32 (R, N) -> dweight float32 (K, N)"

void affine(const auto& op, Gemm multiply, float beta = 0.0f) {
  const int64_t num_rows = op.dim("R"), in = op.dim("K"), out = op.dim("N");
  multiply(false, false, num_rows, out, in, op.floats("x"), in, op.floats("weight"), out, beta, op.floats("y"), out);
}

void affine_with_bias(const auto& op, Gemm multiply) {
  const int64_t out = op.dim("N");
  const float* bias = op.floats("bias");
  float* y = op.floats("y");
  parallel_ranges(op.dim("R"), rows_per_task(out), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::copy(bias, bias + out, y + r * out);
  });
  affine(op, multiply, 1.0f);
}

void gradient_of_x(const auto& op, Gemm multiply) {
  const int64_t num_rows = op.dim("R"), in = op.dim("K"), out = op.dim("N");
  multiply(false, true, num_rows, in, out, op.floats("dy"), out, op.floats("weight"), out, 0.0f, op.floats("dx"), in);
}

void gradient_of_weight(const auto& op, Gemm multiply) {
  const int64_t num_rows = op.dim("R"), in = op.dim("K"), out = op.dim("N");
  multiply(true, false, in, out, num_rows, op.floats("x"), in, op.floats("dy"), out, 0.0f, op.floats("dweight"), out);
}

}  // namespace

GPT2X_OP(linear, GPT2X_LINEAR) { affine(op, gemm); }
GPT2X_OP(linear_bias, GPT2X_LINEAR_BIAS) { affine_with_bias(op, gemm); }
GPT2X_OP(linear_dx, GPT2X_LINEAR_DX) { gradient_of_x(op, gemm); }
GPT2X_OP(linear_dw, GPT2X_LINEAR_DW) { gradient_of_weight(op, gemm); }
GPT2X_OP(linear_bf16, GPT2X_LINEAR) { affine(op, gemm_bf16); }
GPT2X_OP(linear_bias_bf16, GPT2X_LINEAR_BIAS) { affine_with_bias(op, gemm_bf16); }
GPT2X_OP(linear_dx_bf16, GPT2X_LINEAR_DX) { gradient_of_x(op, gemm_bf16); }
GPT2X_OP(linear_dw_bf16, GPT2X_LINEAR_DW) { gradient_of_weight(op, gemm_bf16); }

GPT2X_OP(linear_db, "dy float32 (R, N) -> dbias float32 (N)") {
  column_sums(op.floats("dy"), op.dim("R"), op.dim("N"), op.floats("dbias"));
}

// scale: the reciprocal standard deviation of each row
GPT2X_OP(layer_norm, "x float32 (R, D), weight float32 (D), bias float32 (D), eps float32 (1) "
                     "-> y float32 (R, D), mean float32 (R), scale float32 (R)") {
  const int64_t num_rows = op.dim("R"), width = op.dim("D");
  const float *x = op.floats("x"), *weight = op.floats("weight"), *bias = op.floats("bias"), eps = *op.floats("eps");
  float *y = op.floats("y"), *means = op.floats("mean"), *scales = op.floats("scale");
  parallel_ranges(num_rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const NormStats stats = layer_norm_row(width, x + r * width, weight, bias, eps, y + r * width);
      means[r] = stats.mean;
      scales[r] = stats.scale;
    }
  });
}

GPT2X_OP(layer_norm_grad, "dy float32 (R, D), x float32 (R, D), weight float32 (D), mean float32 (R), scale float32 (R) "
                          "-> dx float32 (R, D), dweight float32 (D), dbias float32 (D)") {
  const int64_t num_rows = op.dim("R"), width = op.dim("D");
  const float *dy = op.floats("dy"), *x = op.floats("x"), *weight = op.floats("weight");
  const float *means = op.floats("mean"), *scales = op.floats("scale");
  float* dx = op.floats("dx");
  std::vector<float> partial(kChunks * 2 * width, 0.0f);
  const int64_t rows = (num_rows + kChunks - 1) / kChunks;
  parallel_ranges(num_rows, rows, [&](int64_t begin, int64_t end) {
    float *dweight = partial.data() + begin / rows * 2 * width, *dbias = dweight + width;
    for (int64_t r = begin; r < end; ++r) {
      const float *in = x + r * width, *slope = dy + r * width, mean = means[r], scale = scales[r];
      float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
      for (int64_t c = 0; c < width; ++c) {
        const float unit = (in[c] - mean) * scale, dunit = slope[c] * weight[c];
        sum += dunit;
        product += dunit * unit;
        dweight[c] += slope[c] * unit;
        dbias[c] += slope[c];
      }
      sum /= width;
      product /= width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c)
        dx[r * width + c] = (slope[c] * weight[c] - sum - (in[c] - mean) * scale * product) * scale;
    }
  });
  std::vector<float> total(2 * width);
  column_sums(partial.data(), kChunks, 2 * width, total.data());
  std::copy_n(total.data(), width, op.floats("dweight"));
  std::copy_n(total.data() + width, width, op.floats("dbias"));
}

GPT2X_OP(gelu_new, "x float32 -> y float32") {
  const float* x = op.floats("x");
  float* y = op.floats("y");
  for_each(op.size("x"), [=](int64_t i) { y[i] = gpt2x::gelu_new(x[i]); });
}

GPT2X_OP(gelu_new_grad, "x float32, dy float32 -> dx float32") {
  const float *x = op.floats("x"), *dy = op.floats("dy");
  float* dx = op.floats("dx");
  for_each(op.size("x"), [=](int64_t i) {
    const float square = x[i] * x[i], gate = sigmoid(x[i] * (square * kGeluCubic + kGeluSlope));
    dx[i] = dy[i] * gate * (1.0f + x[i] * (1.0f - gate) * (square * (3 * kGeluCubic) + kGeluSlope));
  });
}

GPT2X_OP(fast_gelu, "x float32 -> y float32") {
  const float* x = op.floats("x");
  float* y = op.floats("y");
  for_each(op.size("x"), [=](int64_t i) { y[i] = gpt2x::fast_gelu(x[i]); });
}

GPT2X_OP(fast_gelu_grad, "x float32, dy float32 -> dx float32") {
  const float *x = op.floats("x"), *dy = op.floats("dy");
  float* dx = op.floats("dx");
  for_each(op.size("x"), [=](int64_t i) {
    const float gate = sigmoid(kFastGeluSlope * x[i]);
    dx[i] = dy[i] * gate * (1.0f + kFastGeluSlope * x[i] * (1.0f - gate));
  });
}

// rows: one number per row of x, of any shape; settings: MaskSettings
GPT2X_OP(dropout, "x float32, key int32, rows int32, settings int32 (4) -> y float32") {
  const int64_t width = op.last_dim("x"), num_rows = op.size("x") / width;
  if (op.size("rows") != num_rows) throw std::invalid_argument("rows needs one number per row of x");
  const DropoutMask mask(*op.ints("key"), op.record<MaskSettings>("settings"), width);
  const int32_t* numbers = op.ints("rows");
  const float* x = op.floats("x");
  float* y = op.floats("y");
  parallel_ranges(num_rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto keep = mask.row(numbers[r]);
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) y[r * width + c] = x[r * width + c] * keep(c);
    }
  });
}
