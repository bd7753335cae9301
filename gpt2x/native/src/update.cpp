// The loss with its gradients, and what an optimizer update does to them. Legend: R rows, D hidden, V table rows.
#include <algorithm>
#include <limits>
#include <vector>

#include "gemm.hpp"
#include "op.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kLogits = 32 << 20;   // values of the rows whose logits exist at a time
constexpr int64_t kElements = 1 << 16;  // of a task

// A row of logits -> its label's negative log-likelihood; with `weight` the row becomes the gradient of weight times that.
float softmax_row(float* row, int64_t num_columns, int64_t padded, int32_t label, const float* weight) {
  float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
#pragma omp simd reduction(max : largest)
  for (int64_t c = 0; c < num_columns; ++c) largest = row[c] > largest ? row[c] : largest;
  const float logit = row[label];
  double total = 0.0;  // of partial sums: a thousand values in fp32 at a time
  for (int64_t first = 0; first < num_columns; first += 1024) {
    const int64_t end = std::min(num_columns, first + 1024);
    sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = first; c < end; ++c) sum += row[c] = fast_exp(row[c] - largest);
    total += sum;
  }
  if (weight != nullptr) {
    const float scale = static_cast<float>(*weight / total);
#pragma omp simd
    for (int64_t c = 0; c < num_columns; ++c) row[c] *= scale;
    std::fill(row + num_columns, row + padded, 0.0f);
    row[label] -= *weight;
  }
  return static_cast<float>(std::log(total) + largest - logit);
}

// nll (R) of hidden (R, D) under the head `table` (V, D), a share of the rows at a time; with weights (R) also the
// gradients of the weighted sum: dhidden (R, D), and dtable (V, D) where it is not null.
void head_loss(const Op& op, const float* weights, float* nll, float* dhidden, float* dtable) {
  const int64_t num_rows = op.dim(0, 0), width = op.dim(0, 1), padded = op.dim(1, 0), num_columns = *op.ints(3);
  const float *hidden = op.floats(0), *table = op.floats(1);
  const int32_t* labels = op.ints(2);
  const int64_t most = std::max<int64_t>(64, kLogits / padded), parts = (num_rows + most - 1) / most;
  const int64_t rows = (num_rows + parts - 1) / parts;
  static Workspace workspace;
  const int64_t stride = round_up(padded, 64 / sizeof(float));  // rows on cache lines: a quarter faster products
  float* logits = workspace.get(rows * stride);
  for (int64_t first = 0; first < num_rows; first += rows) {
    const int64_t count = std::min(rows, num_rows - first);
    gemm(false, true, count, padded, width, hidden + first * width, width, table, width, 0.0f, logits, stride);
    parallel_for(count, [&](int64_t r) {
      nll[first + r] = softmax_row(logits + r * stride, num_columns, padded, labels[first + r],
                                   weights == nullptr ? nullptr : weights + first + r);
    });
    if (weights == nullptr) continue;
    gemm(false, false, count, width, padded, logits, stride, table, width, 0.0f, dhidden + first * width, width);
    if (dtable != nullptr)
      gemm(true, false, padded, width, count, logits, stride, hidden + first * width, width, first == 0 ? 0.0f : 1.0f, dtable,
           width);
  }
}

}  // namespace

// hidden (R, D), table (V, D), labels (R), columns of the vocabulary (1) -> nll (R)
GPT2X_OP(head_nll) { head_loss(op, nullptr, op.floats(4), nullptr, nullptr); }

// as head_nll, weights (R) -> nll (R), dhidden (R, D), and dtable (V, D) where it is asked for
GPT2X_OP(head_loss) { head_loss(op, op.floats(4), op.floats(5), op.floats(6), op.count == 8 ? op.floats(7) : nullptr); }

// values, in place, times factor (1), after which one may use them -> a number to wait for (1)
GPT2X_OP(scale_in_place) {
  const float factor = *op.floats(1);
  float* values = op.floats(0);
  *op.floats(2) = factor;
  if (factor == 1.0f) return;
  parallel_ranges(op.size(0), kElements, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) values[i] *= factor;
  });
}

// Sums of 4096 in fp32, their sum in fp64.
static double sum_of_squares(const float* x, int64_t count) {
  double total = 0.0;
  for (int64_t first = 0; first < count; first += 4096) {
    const int64_t last = std::min<int64_t>(count, first + 4096);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < last; ++i) sum += x[i] * x[i];
    total += sum;
  }
  return total;
}

// x -> the sum of its squares (1)
GPT2X_OP(square_sum) {
  const int64_t count = op.size(0), parts = (count + kElements - 1) / kElements;
  const float* x = op.floats(0);
  std::vector<double> partial(parts);
  parallel_ranges(count, kElements, [&](int64_t begin, int64_t end) {
    partial[begin / kElements] = sum_of_squares(x + begin, end - begin);
  });
  double total = 0.0;
  for (double part : partial) total += part;
  *op.floats(1) = static_cast<float>(total);
}

// AdamW in one pass: parameter, mean and square, all in place, gradient, factor on it (), whether to update (), rate (), eps (),
// decay factor (), betas (2) -> a number to wait for (1)
GPT2X_OP(adamw) {
  *op.floats(10) = 0.0f;
  if (!*static_cast<const bool*>(op.data[5])) return;
  float *parameter = op.floats(0), *mean = op.floats(1), *square = op.floats(2);
  const float *gradient = op.floats(3), factor = *op.floats(4), rate = *op.floats(6), eps = *op.floats(7);
  const float keep = *op.floats(8), beta1 = op.floats(9)[0], beta2 = op.floats(9)[1];
  parallel_ranges(op.size(0), kElements, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = gradient[i] * factor;
      const float m = mean[i] + (g - mean[i]) * (1.0f - beta1), v = square[i] + (g * g - square[i]) * (1.0f - beta2);
      mean[i] = m;
      square[i] = v;
      parameter[i] = parameter[i] * keep - rate * m / (std::sqrt(v) + eps);
    }
  });
}
