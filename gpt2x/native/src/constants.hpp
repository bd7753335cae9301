// Numbers and layouts that Python needs too. The library exports them (library.cpp); Python reads them, or compares them with
// its own (gpt2x/native/constants.py) when it loads the library.
#pragma once

#include <cstdint>

namespace gpt2x {

// Dropout's hash (gpt2x/ops/_dropout.py).
constexpr uint32_t kMix1 = 0x2C1B3C6D, kMix2 = 0x297A2D39;
constexpr uint64_t kWeyl = 0x9E3779B97F4A7C15ull;

// GELU as x sigmoid(x (kGeluCubic x^2 + kGeluSlope)), and x sigmoid(kFastGeluSlope x) (gpt2x/ops/composed.py).
constexpr float kGeluSlope = 1.5957691216057308f, kGeluCubic = 0.07135481627260025f, kFastGeluSlope = 1.702f;

constexpr int64_t kPanel = 64;  // outputs of a panel of narrow weights (panels.hpp)
constexpr int64_t kGroup = 32;  // inputs with a common scale in int4

enum Activation : int32_t { kGeluNew, kFastGelu };

// Operands of int32 values that have names.
struct MaskSettings {
  int32_t site, threshold;
  float scale;  // 1 / (1 - rate)
  int32_t first_column;
};

struct AttentionSettings {
  int32_t has_starts, has_dropout, first_head, all_heads;
  MaskSettings mask;
};

struct DecoderSettings {
  int32_t num_heads, cache_len;
  Activation activation;
  int32_t has_narrow_cache, vocab_size;
};

struct CopySettings {
  int32_t num_heads, head_dim, prompt_len, cache_len, value_size;  // value_size: bytes
};

}  // namespace gpt2x
