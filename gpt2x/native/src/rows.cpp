// Linear layers, layer normalisation, activations, dropout. Legend: R rows, D hidden, K in, N out.
#include <algorithm>
#include <vector>

#include "dropout.hpp"
#include "gemm.hpp"
#include "op.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kElements = 1 << 15;  // of a task that goes over values one by one
constexpr int64_t kChunks = 32;         // partial sums over rows: their number is fixed, and so is the result

int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, kElements / width); }

// sums (N) of the columns of x (R, N)
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

}  // namespace

// x (R, K), weight (K, N), bias (N) or none -> x weight + bias (R, N)
GPT2X_OP(linear) {
  const int64_t num_rows = op.dim(0, 0), in = op.dim(1, 0), out = op.dim(1, 1);
  const bool has_bias = op.count == 4;
  float* y = op.floats(op.count - 1);
  if (has_bias) {
    const float* bias = op.floats(2);
    parallel_ranges(num_rows, rows_per_task(out), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) std::copy(bias, bias + out, y + r * out);
    });
  }
  gemm(false, false, num_rows, out, in, op.floats(0), in, op.floats(1), out, has_bias ? 1.0f : 0.0f, y, out);
}

// dy (R, N), weight (K, N) -> dx (R, K)
GPT2X_OP(linear_dx) {
  const int64_t num_rows = op.dim(0, 0), in = op.dim(1, 0), out = op.dim(1, 1);
  gemm(false, true, num_rows, in, out, op.floats(0), out, op.floats(1), out, 0.0f, op.floats(2), in);
}

// x (R, K), dy (R, N) -> dweight (K, N)
GPT2X_OP(linear_dw) {
  const int64_t num_rows = op.dim(0, 0), in = op.dim(0, 1), out = op.dim(1, 1);
  gemm(true, false, in, out, num_rows, op.floats(0), in, op.floats(1), out, 0.0f, op.floats(2), out);
}

// dy (R, N) -> its column sums (N)
GPT2X_OP(linear_db) { column_sums(op.floats(0), op.dim(0, 0), op.dim(0, 1), op.floats(1)); }

// x (R, D), weight (D), bias (D), eps (1) -> y (R, D), mean (R), reciprocal standard deviation (R)
GPT2X_OP(layer_norm) {
  const int64_t num_rows = op.dim(0, 0), width = op.dim(0, 1);
  const float *x = op.floats(0), *weight = op.floats(1), *bias = op.floats(2), eps = *op.floats(3);
  float *y = op.floats(4), *means = op.floats(5), *scales = op.floats(6);
  parallel_ranges(num_rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const NormStats stats = layer_norm_row(width, x + r * width, weight, bias, eps, y + r * width);
      means[r] = stats.mean;
      scales[r] = stats.scale;
    }
  });
}

// dy (R, D), x (R, D), weight (D), mean (R), scale (R) -> dx (R, D), dweight (D), dbias (D)
GPT2X_OP(layer_norm_grad) {
  const int64_t num_rows = op.dim(0, 0), width = op.dim(0, 1);
  const float *dy = op.floats(0), *x = op.floats(1), *weight = op.floats(2), *means = op.floats(3), *scales = op.floats(4);
  float* dx = op.floats(5);
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
  std::copy_n(total.data(), width, op.floats(6));
  std::copy_n(total.data() + width, width, op.floats(7));
}

GPT2X_OP(gelu_new) {
  const float* x = op.floats(0);
  float* y = op.floats(1);
  for_each(op.size(0), [=](int64_t i) { y[i] = gpt2x::gelu_new(x[i]); });
}

// x, dy -> dx
GPT2X_OP(gelu_new_grad) {
  const float *x = op.floats(0), *dy = op.floats(1);
  float* dx = op.floats(2);
  for_each(op.size(0), [=](int64_t i) {
    const float square = x[i] * x[i], gate = sigmoid(x[i] * (square * kGeluCubic + kGeluSlope));
    dx[i] = dy[i] * gate * (1.0f + x[i] * (1.0f - gate) * (square * (3 * kGeluCubic) + kGeluSlope));
  });
}

// x sigmoid(1.702 x), as gpt2x.ops.FastGelu
GPT2X_OP(fast_gelu) {
  const float* x = op.floats(0);
  float* y = op.floats(1);
  for_each(op.size(0), [=](int64_t i) { y[i] = x[i] * sigmoid(1.702f * x[i]); });
}

// x, dy -> dx
GPT2X_OP(fast_gelu_grad) {
  const float *x = op.floats(0), *dy = op.floats(1);
  float* dx = op.floats(2);
  for_each(op.size(0), [=](int64_t i) {
    const float gate = sigmoid(1.702f * x[i]);
    dx[i] = dy[i] * gate * (1.0f + 1.702f * x[i] * (1.0f - gate));
  });
}

// x (R, D), key (), rows (R), settings of the mask (4) -> x with a share dropped (R, D)
GPT2X_OP(dropout) {
  const int64_t width = op.dim(0, -1), num_rows = op.size(0) / width;
  const DropoutMask mask(*op.ints(1), op.ints(3), width);
  const int32_t* numbers = op.ints(2);
  const float* x = op.floats(0);
  float* y = op.floats(4);
  parallel_ranges(num_rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto keep = mask.row(numbers[r]);
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) y[r * width + c] = x[r * width + c] * keep(c);
    }
  });
}
