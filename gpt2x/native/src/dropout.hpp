// The dropout mask of gpt2x.ops.Dropout, bit for bit: a hash of (key, site, row) and column.
#pragma once

#include <cstdint>
#include <vector>

#include "constants.hpp"

namespace gpt2x {

inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * kMix1;
  x = (x ^ (x >> 13)) * kMix2;
  return x ^ (x >> 16);
}

class DropoutMask {
 public:
  DropoutMask(uint32_t key, const MaskSettings& settings, int64_t num_columns)
      : key_(key), site_(settings.site), threshold_(settings.threshold), scale_(settings.scale), columns_(num_columns) {
    for (int64_t c = 0; c < num_columns; ++c)
      columns_[c] = mix(static_cast<uint32_t>(((settings.first_column + c + 1) * kWeyl) >> 32));
  }

  // The mask of one row, passed by value so that a loop over its columns has it in registers.
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
    return {columns_.data(), mix(mix(static_cast<uint32_t>(number) ^ site_) + key_), threshold_, scale_};
  }

 private:
  uint32_t key_, site_;
  int32_t threshold_;
  float scale_;
  std::vector<uint32_t> columns_;
};

}  // namespace gpt2x
