// What Python calls beside the operators: opening the library, its interface, and huge pages.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "constants.hpp"
#include "gemm.hpp"
#include "huge_pages.hpp"
#include "onednn.hpp"
#include "op.hpp"
#include "parallel.hpp"

using namespace gpt2x;

namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.17g", value);
  return text;
}

// Place of a member in its struct, counted in int32 values.
#define GPT2X_MEMBER(record, member) {#record "." #member, std::to_string(offsetof(record, member) / sizeof(int32_t))}

std::vector<std::pair<std::string, std::string>> constants() {
  return {
      {"mix_1", std::to_string(kMix1)},
      {"mix_2", std::to_string(kMix2)},
      {"weyl", std::to_string(kWeyl)},
      {"gelu_slope", number(kGeluSlope)},
      {"gelu_cubic", number(kGeluCubic)},
      {"fast_gelu_slope", number(kFastGeluSlope)},
      {"panel", std::to_string(kPanel)},
      {"group", std::to_string(kGroup)},
      {"activation.gelu_new", std::to_string(kGeluNew)},
      {"activation.fast_gelu", std::to_string(kFastGelu)},
      GPT2X_MEMBER(MaskSettings, site),
      GPT2X_MEMBER(MaskSettings, threshold),
      GPT2X_MEMBER(MaskSettings, scale),
      GPT2X_MEMBER(MaskSettings, first_column),
      GPT2X_MEMBER(AttentionSettings, has_starts),
      GPT2X_MEMBER(AttentionSettings, has_dropout),
      GPT2X_MEMBER(AttentionSettings, first_head),
      GPT2X_MEMBER(AttentionSettings, all_heads),
      GPT2X_MEMBER(AttentionSettings, mask),
      GPT2X_MEMBER(DecoderSettings, num_heads),
      GPT2X_MEMBER(DecoderSettings, cache_len),
      GPT2X_MEMBER(DecoderSettings, activation),
      GPT2X_MEMBER(DecoderSettings, has_narrow_cache),
      GPT2X_MEMBER(DecoderSettings, vocab_size),
      GPT2X_MEMBER(CopySettings, num_heads),
      GPT2X_MEMBER(CopySettings, head_dim),
      GPT2X_MEMBER(CopySettings, prompt_len),
      GPT2X_MEMBER(CopySettings, cache_len),
      GPT2X_MEMBER(CopySettings, value_size),
  };
}

}  // namespace

// Lines "constant NAME VALUE" and "operator NAME SIGNATURE".
extern "C" const char* gpt2x_interface() {
  static const std::string text = [] {
    std::string lines;
    for (const auto& [name, value] : constants()) lines += "constant " + name + " " + value + "\n";
    std::sort(registry().begin(), registry().end());
    for (const std::string& line : registry()) lines += line + "\n";
    return lines;
  }();
  return text.c_str();
}

// Take sgemm from the oneDNN library at `path` and start `num_threads` threads. Returns 0, or 1 if the library has no sgemm.
// Call it from the main thread: threads keep to the cores of the thread that starts them, and MindSpore binds each of its own
// to one core.
extern "C" int gpt2x_open(const char* path, int num_threads) {
  start_pool(num_threads);
  return open_onednn(path) ? 0 : 1;
}

// Whether this processor multiplies bf16 faster than fp32, after gpt2x_open.
extern "C" int gpt2x_has_fast_bf16() { return has_fast_bf16() ? 1 : 0; }

extern "C" void gpt2x_move_to_huge_pages(const void* data, int64_t bytes) { move_to_huge_pages(data, bytes); }
