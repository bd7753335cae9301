"""The forward pass over a key/value cache, as one graph.

Rows are padded at the right, so that a token's column is its position and its row in the cache. Nothing is shifted, and
a prompt gives the same beside shorter or longer ones. Padding writes keys and values after the row's last token; the
mask (key position <= query position) hides them until later tokens overwrite them.

Legend: B batch, T new tokens, S cached positions, D hidden, N heads, H head dim, V (padded) vocab.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x.model.gpt2 import GPT2, Block

HIDDEN_SCORE = -1e9  # added in fp32, as in the training attention
NOT_FINITE = -1  # instead of a token


class CachedBlock(nn.Cell):
    """A block of the model with the keys and values (B, N, S, H) of its attention, which stay on the device."""

    def __init__(self, block: Block, batch_size: int, cache_len: int, dtype):
        super().__init__(auto_prefix=False)
        self.block = block
        num_heads, head_dim = block.attn.num_heads, block.attn.head_dim
        self.shape = (batch_size, num_heads, cache_len, head_dim)
        self.scale = 1.0 / math.sqrt(head_dim)
        rows = (batch_size * num_heads * cache_len, head_dim)
        self.keys = Parameter(initializer("zeros", rows, dtype), name="keys", requires_grad=False)
        self.values = Parameter(initializer("zeros", rows, dtype), name="values", requires_grad=False)
        self.write = ops.ScatterUpdate()  # in place: a step costs what it writes, not what is stored
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(axis=-1)

    def construct(self, x, cache_rows, mask):
        """Run the block on new tokens: write their keys and values, then attend to everything written so far.

        x (B, T, D), cache_rows (B * N * T,) int32, mask (B, 1, T, S) -> (B, T, D).
        """
        q, k, v = self.block.attn.queries_keys_values(self.block.ln_1(x))  # each (B, N, T, H)
        self.write(self.keys, cache_rows, k.reshape(-1, self.shape[-1]))
        self.write(self.values, cache_rows, v.reshape(-1, self.shape[-1]))
        scores = self.scores(q * self.scale, self.keys.reshape(self.shape))  # (B, N, T, S)
        weights = self.softmax(ops.cast(scores, ms.float32) + mask)
        x = x + self.block.attn.merge(self.mix(ops.cast(weights, q.dtype), self.values.reshape(self.shape)))
        return self.block.feed_forward(x, None)


def first_cache_rows(net: GPT2, batch_size: int, cache_len: int) -> np.ndarray:
    """Return the first row of each head in a cache (B * N * S, H), int32 (B, N, 1)."""
    num_heads = net.h[0].attn.num_heads
    first = np.arange(batch_size * num_heads, dtype=np.int32) * cache_len
    return first.reshape(batch_size, num_heads, 1)


class Graph(nn.Cell):
    """A cell that is called in every step of decoding.

    At every call MindSpore 2.10 writes into each inner cell to which graph it belongs. Only cells that are also called
    alone need that, and it took 5 of the 25 ms of a step of GPT-2 small.
    """

    @property
    def compile_phase(self):
        """MindSpore's name for the graph of the last call."""
        return self._compile_phase

    @compile_phase.setter
    def compile_phase(self, value):
        self._compile_phase = value


class Decoder(Graph):
    """GPT-2 with a cache of one shape; it shares the parameters of `net`, also while they are trained.

    One `construct` serves prompts (T tokens per row) and each later step (T = 1), with one graph per T.

    Args:
        net: the model.
        batch_size: B.
        cache_len: S.
        name: name of the cache; one graph may contain the caches of two decoders.
    """

    def __init__(self, net: GPT2, batch_size: int, cache_len: int, name: str = "cache"):
        super().__init__(auto_prefix=False)
        self.net = net
        self.blocks = nn.CellList(
            [CachedBlock(block, batch_size, cache_len, net.dtype) for block in net.h], auto_prefix=False
        )
        for layer, block in enumerate(self.blocks):
            block.keys.name, block.values.name = f"{name}.{layer}.keys", f"{name}.{layer}.values"
        self.first_cache_rows = Tensor(first_cache_rows(net, batch_size, cache_len))
        self.cached_positions = Tensor(np.arange(cache_len, dtype=np.int32).reshape(1, 1, 1, cache_len))
        self.hidden_score, self.zero = Tensor(HIDDEN_SCORE, ms.float32), Tensor(0.0, ms.float32)
        self.batch_size = batch_size
        self.argmax = ops.Argmax(axis=-1, output_type=ms.int32)

    def construct(self, ids, positions, last):
        """Return the logits of one token per row.

        ids: (B, T) int32.
        positions: (B, T) int32, the position of each token in its sequence.
        last: (B,) int32, the column of ids that holds the row's last token.
        Returns (B, V) fp32.
        """
        return self.logits(ids, positions, last.reshape(-1, 1))

    def logits(self, ids, positions, columns):
        """Return `construct` for several tokens per row: columns (B, L) int32 of ids -> (B * L, V) fp32."""
        x, length = self.net.embed(ids, positions), ids.shape[1]  # (B, T, D)
        rows = (ops.arange(self.batch_size).astype(ms.int32).reshape(-1, 1) * length + columns).reshape(-1)  # (B * L,)
        # Read before the cache is written: a tied table read before and after a write is copied, 150 MB per step.
        head = self.net.head()
        cache_rows = (self.first_cache_rows + positions.reshape(-1, 1, length)).reshape(-1)  # (B * N * T,)
        visible = self.cached_positions <= positions.reshape(-1, 1, length, 1)
        mask = ops.select(visible, self.zero, self.hidden_score)  # (B, 1, T, S)
        for block in self.blocks:
            x = block(x, cache_rows, mask)
        x = ops.gather(x.reshape(-1, x.shape[-1]), rows, 0)  # (R, D)
        return ops.cast(self.net.logits(self.net.ln_f(x), head), ms.float32)

    def likeliest(self, ids, positions, columns):
        """Return the most likely tokens instead: (B, L) int32, NOT_FINITE if a logit is not finite."""
        logits = self.logits(ids, positions, columns)  # (B * L, V)
        is_finite = ops.isfinite(logits.sum(axis=-1))  # one infinite or NaN logit makes the sum so; saves a pass
        tokens = ops.select(is_finite, self.argmax(logits), ops.full_like(is_finite, NOT_FINITE, dtype=ms.int32))
        return tokens.reshape(columns.shape)
