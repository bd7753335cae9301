// The loss with its gradients, and the operators of an optimizer update. Legend: R rows, D hidden, V table rows.
#include <algorithm>
#include <limits>
#include <vector>

#include "gemm.hpp"
#include "op.hpp"
#include "parallel.hpp"
#include "products.hpp"
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

// Products of the head and of some of its rows at a time, in fp32.
class HeadFp32 {
 public:
  HeadFp32(int64_t width, int64_t padded, const float* table) : width_(width), padded_(padded), table_(table) {}

  void begin(int64_t count, int64_t stride, const float* hidden, float* logits) {
    count_ = count, stride_ = stride, hidden_ = hidden, logits_ = logits;
    gemm(false, true, count, padded_, width_, hidden, width_, table_, width_, 0.0f, logits, stride);
  }
  void finish_row(int64_t) {}  // after it, the row of logits is a gradient
  void dhidden(float* to) { gemm(false, false, count_, width_, padded_, logits_, stride_, table_, width_, 0.0f, to, width_); }
  void dtable(float beta, float* to) {
    gemm(true, false, padded_, width_, count_, logits_, stride_, hidden_, width_, beta, to, width_);
  }

 private:
  int64_t width_, padded_, count_ = 0, stride_ = 0;
  const float *table_, *hidden_ = nullptr, *logits_ = nullptr;
};

// The same, of operands that are rounded to bf16: the table once, a row of gradients while it is in the cache.
class HeadBf16 {
 public:
  HeadBf16(int64_t width, int64_t padded, const float* table) : width_(width), padded_(padded) {
    static Workspace workspace;
    table_ = workspace.get<Bf16>(padded * width);
    round_in_parallel(padded * width, table, table_);
  }

  void begin(int64_t count, int64_t stride, const float* hidden, float* logits) {
    static Workspace of_hidden, of_gradients;
    count_ = count, stride_ = stride, logits_ = logits;
    hidden_ = of_hidden.get<Bf16>(count * width_);
    gradients_ = of_gradients.get<Bf16>(count * stride);
    round_in_parallel(count * width_, hidden, hidden_);
    multiply_bf16(false, true, count, padded_, width_, hidden_, width_, table_, width_, false, logits, stride);
  }
  void finish_row(int64_t r) { round_to_bf16(padded_, logits_ + r * stride_, gradients_ + r * stride_); }
  void dhidden(float* to) {
    multiply_bf16(false, false, count_, width_, padded_, gradients_, stride_, table_, width_, false, to, width_);
  }
  void dtable(float beta, float* to) {
    multiply_bf16(true, false, padded_, width_, count_, gradients_, stride_, hidden_, width_, beta != 0.0f, to, width_);
  }

 private:
  int64_t width_, padded_, count_ = 0, stride_ = 0;
  const float* logits_ = nullptr;
  Bf16 *table_, *hidden_ = nullptr, *gradients_ = nullptr;
};

// nll (R) of hidden (R, D) under the head `table` (V, D), some rows at a time. With weights (R), also the gradients of the
// weighted sum: dhidden (R, D), and dtable (V, D) if it is not null. num_columns: V without padding.
template <typename Head>
void head_loss(const auto& op, const float* weights, float* dhidden, float* dtable) {
  const int64_t num_rows = op.dim("R"), width = op.dim("D"), padded = op.dim("V"), num_columns = *op.ints("num_columns");
  const float* hidden = op.floats("hidden");
  const int32_t* labels = op.ints("labels");
  float* nll = op.floats("nll");
  const int64_t most = std::max<int64_t>(64, kLogits / padded), parts = (num_rows + most - 1) / most;
  const int64_t rows = (num_rows + parts - 1) / parts;
  static Workspace workspace;
  const int64_t stride = round_up(padded, 64 / sizeof(float));  // rows start at cache lines: products are a quarter faster
  float* logits = workspace.get(rows * stride);
  Head head(width, padded, op.floats("table"));
  for (int64_t first = 0; first < num_rows; first += rows) {
    const int64_t count = std::min(rows, num_rows - first);
    head.begin(count, stride, hidden + first * width, logits);
    parallel_for(count, [&](int64_t r) {
      nll[first + r] = softmax_row(logits + r * stride, num_columns, padded, labels[first + r],
                                   weights == nullptr ? nullptr : weights + first + r);
      if (weights != nullptr) head.finish_row(r);
    });
    if (weights == nullptr) continue;
    head.dhidden(dhidden + first * width);
    if (dtable != nullptr) head.dtable(first == 0 ? 0.0f : 1.0f, dtable);
  }
}

}  // namespace

#define GPT2X_HEAD_NLL GPT2X_HEAD_OPERANDS " -> nll float32 (R)"
#define GPT2X_HEAD_FROZEN GPT2X_HEAD_OPERANDS ", weights float32 (R) -> nll float32 (R), dhidden float32 (R, D)"
#define GPT2X_HEAD_LOSS GPT2X_HEAD_FROZEN ", dtable float32 (V, D)"

GPT2X_OP(head_nll, GPT2X_HEAD_NLL) { head_loss<HeadFp32>(op, nullptr, nullptr, nullptr); }

GPT2X_OP(head_loss, GPT2X_HEAD_LOSS) {
  head_loss<HeadFp32>(op, op.floats("weights"), op.floats("dhidden"), op.floats("dtable"));
}

// head_loss for a table that is not trained
GPT2X_OP(head_loss_frozen, GPT2X_HEAD_FROZEN) {
  head_loss<HeadFp32>(op, op.floats("weights"), op.floats("dhidden"), nullptr);
}

GPT2X_OP(head_nll_bf16, GPT2X_HEAD_NLL) { head_loss<HeadBf16>(op, nullptr, nullptr, nullptr); }

GPT2X_OP(head_loss_bf16, GPT2X_HEAD_LOSS) {
  head_loss<HeadBf16>(op, op.floats("weights"), op.floats("dhidden"), op.floats("dtable"));
}

// head_loss_bf16 for a table that is not trained
GPT2X_OP(head_loss_frozen_bf16, GPT2X_HEAD_FROZEN) {
  head_loss<HeadBf16>(op, op.floats("weights"), op.floats("dhidden"), nullptr);
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
    for (float* moment : {mean, square})
      if (moment[begin] == 0.0f) populate(moment + begin, sizeof(float) * (end - begin));  // likely the first update
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
