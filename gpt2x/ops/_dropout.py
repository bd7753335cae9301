"""Dropout whose mask every backend draws the same, bit for bit.

Legend: B batch, T tokens, D hidden, R rows.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x.native.constants import MIX_1, MIX_2, WEYL

BYTE = 8  # elements of a byte of `Dropout.keep_bits`


def mix_columns(x: np.ndarray) -> np.ndarray:
    """Return `Dropout.mix` of uint32, by numpy."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(MIX_1)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(MIX_2)
    return x ^ (x >> np.uint32(16))


class Dropout(nn.Cell):
    """Dropout (Srivastava et al., 2014) whose mask is a pure function of key, site and logical position.

    The mask at (row, column) is a hash of (key, site, row) and column. A resumed run, a different micro batch size or
    a different layout therefore drops the same activations. MindSpore's own dropout has hidden kernel state that
    cannot be saved.

    Rows and columns are hashed in full. What is left for each element is x (x + M) mod 2^32 of their sum x, whose
    upper bits decide. Additions and multiplications are what int32 does fast on the CPU; a shift costs three times as
    much. `tests/test_ops.py` compares the masks with the statistics of independent draws.

    Args:
        rate: the fraction that is dropped, in [0, 1).
        site: the number that tells this dropout from all others of the model.
        columns: the largest size of the last dim.
        first: logical number of the first column, if other processes have the columns before it.
    """

    def __init__(self, rate: float, site: int, columns: int, first: int = 0):
        super().__init__()
        self.first = first
        self.keep_prob, self.scale = 1.0 - rate, 1.0 / (1.0 - rate)
        self.site = (site * 0x9E3779B1 + 0x7F4A7C15) % 2**31
        self.threshold = round(rate * 2**32) - 2**31
        numbers = np.arange(first + 1, first + columns + 1, dtype=np.uint64)
        column = numbers * np.uint64(WEYL)
        hashed = mix_columns((column >> np.uint64(32)).astype(np.uint32))
        self.columns = Tensor(hashed.view(np.int32).reshape(1, columns))
        self.bits = Tensor((1 << np.arange(BYTE, dtype=np.int32)).reshape(BYTE, 1, 1))

    def read_site(self, number: ms.Parameter) -> None:
        """Take the hashed site from a parameter, int32 (1,), so that one graph serves many sites (`Dropout.site`)."""
        self.site = number

    def keep(self, key, rows, columns: int):
        """Return the multipliers, 0 or 1 / (1 - rate), fp32.

        key: int32 scalar of (seed, step); rows: (R, 1) int32 logical row numbers -> (R, columns).
        """
        x = self.hashed_rows(key, rows) + self.columns[:, :columns]  # (R, columns)
        return ops.cast(self.is_kept(x), ms.float32) * self.scale

    def keep_bits(self, key, rows, columns: int):
        """Return the mask of `keep` in bits, 1 where it keeps: (R, columns / 8) uint8.

        Column 8 j + i is bit i of byte j, counted from the lowest, as the flash kernels of Ascend read it. `columns` is
        a multiple of 8; other arguments as in `keep`. The eight bits are computed as (8, R, columns / 8) and then added
        up: with the bits as the last dim, every operator would run over rows of eight values.
        """
        x = self.hashed_rows(key, rows).reshape(1, -1, 1)
        columns_by_bit = self.columns[:, :columns].reshape(-1, BYTE).transpose(1, 0)  # (8, columns / 8)
        x = x + columns_by_bit.reshape(BYTE, 1, -1)  # (8, R, columns / 8)
        kept = ops.cast(self.is_kept(x), ms.int32) * self.bits
        return ops.cast(ops.reduce_sum(kept, 0), ms.uint8)  # (R, columns / 8)

    def hashed_rows(self, key, rows):
        """rows (R, 1) -> (R, 1), which depend on the key and the site as well."""
        return self.mix(self.mix(self.xor(rows, self.site)) + key)

    def mix(self, x):
        """Return a bijection of int32 that spreads every bit (the form of MurmurHash3's finaliser; public domain)."""
        x = self.xor(x, self.shift_right(x, 16)) * MIX_1
        x = self.xor(x, self.shift_right(x, 13)) * MIX_2
        return self.xor(x, self.shift_right(x, 16))

    def xor(self, x, y):
        """Return the exclusive or of the bits of int32."""
        return ops.bitwise_xor(x, y)

    def shift_right(self, x, bits: int):
        """Return the logical shift; MindSpore's keeps the sign."""
        return ops.bitwise_and(ops.bitwise_right_shift(x, bits), 2 ** (32 - bits) - 1)

    def is_kept(self, x):
        """Decide for sums of a hashed row and a hashed column, of any shape: bool."""
        return x * (x + MIX_1) >= self.threshold

    def construct(self, x, key, rows):
        """x (B, T, D); rows (B * T, 1) -> x after dropout."""
        return x * ops.cast(self.keep(key, rows, x.shape[-1]), x.dtype).reshape(x.shape)
