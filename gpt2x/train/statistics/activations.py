"""A forward pass without dropout that looks at the residual stream and at the logits of attention.

Legend: A micro batches, B sequences of each, T tokens, D hidden, N heads, L layers.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x.data.sampling import Batch
from gpt2x.model.gpt2 import GPT2
from gpt2x.ops import hidden_keys
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.step import StepInputs

ENTRANCE = "embedding"  # the label of what enters the first block


class Activations(nn.Cell):
    """Sums and maxima over the tokens of a micro batch.

    Args:
        net: all layers and all tokens; heads may be split.
        has_attention: whether to look at attention, too.
    """

    def __init__(self, net: GPT2, has_attention: bool):
        super().__init__(auto_prefix=False)
        self.net, self.has_attention = net, has_attention
        self.scores, self.softmax = ops.BatchMatMul(transpose_b=True), ops.Softmax(axis=-1)

    def construct(self, ids, starts, is_token):
        """Look at each block.

        ids: (B, T + 1) int32, of which the last column is not read.
        starts: (B, T) int32 or None, as in `GPT2.construct`.
        is_token: (B, T) fp32, 0 at padding.
        Returns (L + 1, 3) fp32 of the embedding and of each block's output: sum of squares, largest magnitude, number
        of values that are not finite; and (L, 2) fp32 of each block's attention: largest magnitude of a logit, sum of
        the entropies of all queries and heads. Without attention the second is (1, 2) of zeros.
        """
        x, segments = self.net.begin(ids[:, :-1], None, starts), self.net.segments(starts)
        hidden = self.hidden(is_token, starts)
        streams, logits = (self.stream(x, is_token),), ()
        for block in self.net.h:
            if self.has_attention:
                logits = (*logits, self.attention(block, x, hidden, is_token))
            x = block(x, None, segments)
            streams = (*streams, self.stream(x, is_token))
        return ops.stack(streams), ops.stack(logits) if self.has_attention else ops.zeros((1, 2), ms.float32)

    def stream(self, x, is_token):
        """x (B, T, D), is_token (B, T) -> (3,) fp32."""
        values = ops.cast(x, ms.float32)
        kept = ops.select(is_token.reshape(*is_token.shape, 1).expand_as(values) > 0, values, ops.zeros_like(values))
        not_finite = 1.0 - ops.cast(ops.isfinite(kept), ms.float32)
        return ops.stack((ops.reduce_sum(kept * kept), ops.ReduceMax()(ops.abs(kept)), ops.reduce_sum(not_finite)))

    def hidden(self, is_token, starts):
        """Return which keys a query must not see, (B, T, T) bool."""
        zeros = ops.cast(is_token * 0, ms.int32)
        return hidden_keys(zeros if starts is None else starts)

    def attention(self, block, x, hidden, is_token):
        """x (B, T, D), hidden (B, T, T), is_token (B, T) -> (2,) fp32."""
        queries, keys, _ = block.attn.queries_keys_values(block.ln_1(x))  # (B, N, T, H)
        scores = ops.cast(self.scores(queries, keys), ms.float32) * (queries.shape[-1] ** -0.5)  # (B, N, T, T)
        unseen = ops.cast(hidden, ms.float32).reshape(hidden.shape[0], 1, *hidden.shape[1:])
        counts = is_token.reshape(is_token.shape[0], 1, -1, 1)
        seen = scores * (1.0 - unseen) * counts
        weights = self.softmax(scores - unseen * 1e9)
        entropies = ops.reduce_sum(weights * ops.log(weights + 1e-30), -1) * counts.reshape(is_token.shape[0], 1, -1)
        return ops.stack((ops.ReduceMax()(ops.abs(seen)), -ops.reduce_sum(entropies)))


class ActivationMeter:
    """Statistics of activations over the global batch.

    Args:
        net: this process's part of the model: all layers and all tokens.
        num_heads: of all processes.
        mesh: the processes.
        chosen: `activations`, `attention` or both.
    """

    def __init__(self, net: GPT2, num_heads: int, mesh: Mesh, chosen: list[str]):
        self.cell, self.mesh, self.chosen = Activations(net, "attention" in chosen), mesh, chosen
        self.hidden_size, self.num_heads = net.hidden_size, num_heads

    def measure(self, inputs: StepInputs, batch: Batch) -> dict[str, float]:
        """Return the metrics; every process calls this."""
        is_token = tokens_of(batch, inputs.ids.shape[-1] - 1).reshape(inputs.weights.shape)
        streams, logits = [], []
        for index in range(len(inputs.ids)):
            ids, _, starts, *_ = inputs.micro_batch(index)
            of_streams, of_logits = self.cell(ids, starts, Tensor(is_token[index]))
            streams.append(of_streams.asnumpy().astype(np.float64))
            logits.append(of_logits.asnumpy().astype(np.float64))
        is_counted = self.mesh.coordinates.tensor == 0  # the residual stream is the same on all that split a layer
        counted = np.array(streams) * is_counted
        sums = self.mesh.gather(np.append(counted[..., (0, 2)].sum(0), is_token.sum() * is_counted)).sum(0)
        largest = self.mesh.gather(counted[..., 1].max(0)).max(0)
        totals, num_tokens = sums[:-1].reshape(-1, 2), sums[-1]
        metrics = self.of_streams(totals, largest, num_tokens) if "activations" in self.chosen else {}
        if "attention" in self.chosen:
            logit_max = self.mesh.gather(np.array(logits)[..., 0].max(0)).max(0)
            entropy = self.mesh.gather(np.array(logits)[..., 1].sum(0)).sum(0) / (num_tokens * self.num_heads)
            for layer, values in enumerate(zip(logit_max.tolist(), entropy.tolist(), strict=True)):
                metrics |= dict(zip((f"attention_logit_max/h.{layer}", f"attention_entropy/h.{layer}"), values,
                                    strict=True))  # fmt: skip
        return metrics

    def of_streams(self, totals: np.ndarray, largest: np.ndarray, num_tokens: float) -> dict[str, float]:
        """Return the metrics of the residual stream from sums (L + 1, 2) and maxima (L + 1,)."""
        metrics: dict[str, float] = {}
        num_values = num_tokens * self.hidden_size
        for number, ((squares, not_finite), most) in enumerate(zip(totals.tolist(), largest.tolist(), strict=True)):
            label = f"h.{number - 1}" if number else ENTRANCE
            metrics[f"activation_rms/{label}"] = float(np.sqrt(squares / num_values))
            metrics[f"activation_max/{label}"] = most
            metrics[f"activation_nonfinite/{label}"] = not_finite / num_values
        return metrics


def tokens_of(batch: Batch, length: int) -> np.ndarray:
    """Return a 1 for each token and a 0 for padding, which follows the tokens of a row: fp32 (rows, length)."""
    is_token = np.sort(batch["attention_mask"] != 0, axis=1)[:, ::-1]
    return np.ascontiguousarray(is_token[:, :length], np.float32)
