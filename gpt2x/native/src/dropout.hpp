// The dropout mask of gpt2x.ops.Dropout: a hash of (key, place, row) and column, to the bit.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace gpt2x {

constexpr uint32_t kMix1 = 0x2C1B3C6D, kMix2 = 0x297A2D39;

inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * kMix1;
  x = (x ^ (x >> 13)) * kMix2;
  return x ^ (x >> 16);
}

class DropoutMask {
 public:
  // settings: place, threshold, the bits of the scale 1 / (1 - rate) as a float, the first column's number.
  DropoutMask(uint32_t key, const int32_t* settings, int64_t num_columns) : key_(key), place_(settings[0]), threshold_(settings[1]) {
    std::memcpy(&scale_, settings + 2, sizeof(scale_));
    columns_.resize(num_columns);
    for (int64_t c = 0; c < num_columns; ++c)
      columns_[c] = mix(static_cast<uint32_t>(((settings[3] + c + 1) * 0x9E3779B97F4A7C15ull) >> 32));
  }

  // A row's mask, by value: what a loop over its columns needs in registers.
  struct Row {
    const uint32_t* columns;
    uint32_t hash;
    int32_t threshold;
    float scale;

    // The multiplier of a column: 0 or the scale.
    [[gnu::always_inline]] float operator()(int64_t column) const {
      uint32_t x = hash + columns[column];
      x *= x + kMix1;
      return static_cast<int32_t>(x) >= threshold ? scale : 0.0f;
    }
  };

  [[gnu::always_inline]] Row row(int32_t number) const {
    return {columns_.data(), mix(mix(static_cast<uint32_t>(number) ^ place_) + key_), threshold_, scale_};
  }

 private:
  uint32_t key_, place_;
  int32_t threshold_;
  float scale_;
  std::vector<uint32_t> columns_;
};

}  // namespace gpt2x
