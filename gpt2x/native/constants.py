"""Numbers that Python and the C++ kernels share: their only home in Python.

gpt2x/native/src/constants.hpp has the same numbers. `gpt2x.native.library` compares them when it opens the library.
"""

from __future__ import annotations

import math

# The hash of dropout masks (gpt2x/ops/_dropout.py)
MIX_1, MIX_2 = 0x2C1B3C6D, 0x297A2D39  # odd multipliers below 2^31, because graphs multiply int32
WEYL = 0x9E3779B97F4A7C15  # step of the columns' Weyl sequence: 2^64 over the golden ratio

# The tanh form of GELU, x sigmoid(x (GELU_CUBIC x^2 + GELU_SLOPE)), and fast_gelu, x sigmoid(FAST_GELU_SLOPE x)
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_SLOPE
FAST_GELU_SLOPE = 1.702

SHARED: dict[str, int | float] = {
    "mix_1": MIX_1,
    "mix_2": MIX_2,
    "weyl": WEYL,
    "gelu_slope": GELU_SLOPE,
    "gelu_cubic": GELU_CUBIC,
    "fast_gelu_slope": FAST_GELU_SLOPE,
}

# Numbers that only C++ defines and Python reads from the library. `RECORD.FIELD` is the place of a field in a record,
# an operand of named int32 values (`gpt2x.native.record`).
READ = (
    "panel",
    "group",
    "activation.gelu_new",
    "activation.fast_gelu",
    "MaskSettings.site",
    "MaskSettings.threshold",
    "MaskSettings.scale",
    "MaskSettings.first_column",
    "AttentionSettings.has_starts",
    "AttentionSettings.has_dropout",
    "AttentionSettings.first_head",
    "AttentionSettings.all_heads",
    "AttentionSettings.mask",
    "DecoderSettings.num_heads",
    "DecoderSettings.cache_len",
    "DecoderSettings.activation",
    "DecoderSettings.has_narrow_cache",
    "DecoderSettings.vocab_size",
    "CopySettings.num_heads",
    "CopySettings.head_dim",
    "CopySettings.prompt_len",
    "CopySettings.cache_len",
    "CopySettings.value_size",
)
