// The loss with its gradients, and the operators of an optimizer update. Legend: R rows, D hidden, V table rows.
#include <algorithm>
#include <limits>
#include <vector>

#include "gemm.hpp"
#include "op.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

using namespace gpt2x;

namespace {

constexpr int64_t kLogits = 32 << 20;   // logits that exist at a time
constexpr int64_t kElements = 1 << 16;  // values per task

// A row of logits -> the negative log-likelihood of its label. With `weight`, the row becomes the gradient of weight times it.
float softmax_row(float* row, int64_t num_columns, int64_t padded, int32_t label, const float* weight) {
  float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
#pragma omp simd reduction(max : largest)
  for (int64_t c = 0; c < num_columns; ++c) largest = row[c] > largest ? row[c] : largest;
  const float logit = row[label];
  double total = 0.0;  // sums 1024 values in fp32, and these sums in fp64
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

#define GPT2X_HEAD_OPERANDS "hidden float32 (R, D), table float32 (V, D), labels int32 (R), num_columns int32 (1)"

// nll (R) of hidden (R, D) under the head `table` (V, D), some rows at a time. With weights (R), also the gradients of the
// weighted sum: dhidden (R, D), and dtable (V, D) if it is not null. num_columns: V without padding.
void head_loss(const auto& op, const float* weights, float* dhidden, float* dtable) {
  const int64_t num_rows = op.dim("R"), width = op.dim("D"), padded = op.dim("V"), num_columns = *op.ints("num_columns");
  const float *hidden = op.floats("hidden"), *table = op.floats("table");
  const int32_t* labels = op.ints("labels");
  float* nll = op.floats("nll");
  const int64_t most = std::max<int64_t>(64, kLogits / padded), parts = (num_rows + most - 1) / most;
  const int64_t rows = (num_rows + parts - 1) / parts;
  static Workspace workspace;
  const int64_t stride = round_up(padded, 64 / sizeof(float));  // rows start at cache lines: products are a quarter faster
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

GPT2X_OP(head_nll, GPT2X_HEAD_OPERANDS " -> nll float32 (R)") { head_loss(op, nullptr, nullptr, nullptr); }

GPT2X_OP(head_loss, GPT2X_HEAD_OPERANDS ", weights float32 (R) -> nll float32 (R), dhidden float32 (R, D), dtable float32 (V, D)") {
  head_loss(op, op.floats("weights"), op.floats("dhidden"), op.floats("dtable"));
}

// head_loss for a table that is not trained
GPT2X_OP(head_loss_frozen, GPT2X_HEAD_OPERANDS ", weights float32 (R) -> nll float32 (R), dhidden float32 (R, D)") {
  head_loss(op, op.floats("weights"), op.floats("dhidden"), nullptr);
}

// values *= factor in place; users of the values wait for `done`
GPT2X_OP(scale_in_place, "values float32, factor float32 (1) -> done float32 (1)") {
  const float factor = *op.floats("factor");
  float* values = op.floats("values");
  *op.floats("done") = factor;
  if (factor == 1.0f) return;
  parallel_ranges(op.size("values"), kElements, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) values[i] *= factor;
  });
}

// Sums 4096 squares in fp32, and these sums in fp64.
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

GPT2X_OP(square_sum, "x float32 -> sum float32 (1)") {
  const int64_t count = op.size("x"), parts = (count + kElements - 1) / kElements;
  const float* x = op.floats("x");
  std::vector<double> partial(parts);
  parallel_ranges(count, kElements, [&](int64_t begin, int64_t end) {
    partial[begin / kElements] = sum_of_squares(x + begin, end - begin);
  });
  double total = 0.0;
  for (double part : partial) total += part;
  *op.floats("sum") = static_cast<float>(total);
}

// AdamW in one pass over memory; parameter, mean and square change in place, if `finite`. factor scales the gradient.
GPT2X_OP(adamw, "parameter float32, mean float32, square float32, gradient float32, factor float32, finite bool, rate float32, "
                "eps float32, decay_factor float32, betas float32 (2) -> done float32 (1)") {
  *op.floats("done") = 0.0f;
  if (!op.flag("finite")) return;
  float *parameter = op.floats("parameter"), *mean = op.floats("mean"), *square = op.floats("square");
  const float *gradient = op.floats("gradient"), factor = *op.floats("factor"), rate = *op.floats("rate"), eps = *op.floats("eps");
  const float decay_factor = *op.floats("decay_factor"), beta1 = op.floats("betas")[0], beta2 = op.floats("betas")[1];
  parallel_ranges(op.size("parameter"), kElements, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = gradient[i] * factor;
      const float m = mean[i] + (g - mean[i]) * (1.0f - beta1), v = square[i] + (g * g - square[i]) * (1.0f - beta2);
      mean[i] = m;
      square[i] = v;
      parameter[i] = parameter[i] * decay_factor - rate * m / (std::sqrt(v) + eps);
    }
  });
}
