"""Tensor parallelism: cells of the single-device model are replaced by cells that compute a part of them.

Column and row parallel linears enclose attention and feed-forward (Shoeybi et al., arXiv:1909.08053, section 3). Each
of the two takes one all-reduce over the tensor axis forward and one backward. Embedding and head are split by the
vocabulary, and the cross entropy exchanges only each rank's log-sum-exp. With sequence parallelism (Korthikanti et
al., arXiv:2205.05198, section 4.2.2) layer norms and dropout in between are computed on a slice of the tokens.

Legend: B batch, T tokens, t tokens of this process, D hidden, N heads of this process, V vocabulary of this process.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.model import stats
from gpt2x.model.classifier import Classifier
from gpt2x.model.gpt2 import (
    GPT2,
    Embedding,
    FeedForward,
    Linear,
    SelfAttention,
    attention,
    name_parameters,
    recompute_blocks,
)
from gpt2x.ops import Backend
from gpt2x.parallel.collectives import (
    AllGather,
    AllReduce,
    CopyToGroup,
    GatherTokens,
    Group,
    JoinTokens,
    ScatterTokens,
    SplitTokens,
    SumOverGroup,
)
from gpt2x.parallel.mesh import Mesh


class ColumnParallelLinear(Linear):
    """A column parallel linear: this process has a slice of the outputs."""

    def __init__(self, in_size: int, out_size: int, backend: Backend, enter: nn.Cell):
        super().__init__(in_size, out_size, backend)
        self.enter = enter

    def construct(self, x, randomness=None):
        """x (B, T or t, in) -> (B, T, out)."""
        return super().construct(self.enter(x), randomness)


class RowParallelLinear(Linear):
    """A row parallel linear: this process has a slice of the inputs; the bias is added to the sum over processes."""

    def __init__(self, in_size: int, out_size: int, backend: Backend, leave: nn.Cell):
        super().__init__(in_size, out_size, backend)
        self.leave = leave

    def construct(self, x, randomness=None):
        """x (B, T, in) -> (B, T or t, out)."""
        x = self.leave(self.product(x, randomness).reshape((*x.shape[:-1], self.out_size)))
        return self.add_bias(x.reshape(-1, self.out_size), x.shape[:-1])


class TensorParallelAttention(SelfAttention):
    """Self-attention by the heads of this process."""

    def __init__(self, model: ModelConfig, backend: Backend, layer: int, group: Group, ends: tuple):
        super().__init__(model, backend, 1 + 3 * layer)
        width = model.hidden_size // group.size
        self.num_heads = model.num_heads // group.size
        self.c_attn = ColumnParallelLinear(model.hidden_size, 3 * width, backend, ends[0])
        self.c_proj = RowParallelLinear(width, model.hidden_size, backend, ends[1])
        self.attention = attention(model, backend, 1 + 3 * layer, self.num_heads, group.index * self.num_heads)


class TensorParallelFeedForward(FeedForward):
    """The feed-forward layer by this process's slice of its width."""

    def __init__(self, model: ModelConfig, backend: Backend, group: Group, ends: tuple):
        super().__init__(model, backend)
        width = stats.ffn_size(model) // group.size
        self.c_fc = ColumnParallelLinear(model.hidden_size, width, backend, ends[0])
        self.c_proj = RowParallelLinear(width, model.hidden_size, backend, ends[1])


class VocabParallelEmbedding(Embedding):
    """An embedding of which this process has a slice of the rows; the tokens of other rows are zero before the sum."""

    def __init__(self, num_rows: int, hidden_size: int, backend: Backend, group: Group):
        super().__init__(num_rows, hidden_size, backend)
        self.first_row, self.num_rows, self.leave = group.index * num_rows, num_rows, SumOverGroup(group)

    def construct(self, ids):
        """ids (B, T) int32 -> (B, T, D) fp32."""
        rows = ids - self.first_row
        is_here = ops.logical_and(rows >= 0, rows < self.num_rows)
        x = self.rows(rows * ops.cast(is_here, ms.int32), self.weight)
        return self.leave(x * ops.cast(is_here, x.dtype).reshape((*ids.shape, 1)))


class VocabParallelCrossEntropy(nn.Cell):
    """Negative log-likelihoods in nats from logits of which every process has a slice of the columns."""

    def __init__(self, group: Group, num_columns: int):
        super().__init__()
        self.kernel = VocabParallelCrossEntropyKernel(group, num_columns)

    def construct(self, logits, labels):
        """logits (R, V), labels (R,) int32 -> nll (R,)."""
        return self.kernel(logits, labels)[0]


class VocabParallelCrossEntropyKernel(nn.Cell):
    """`VocabParallelCrossEntropy` that also returns what its gradient needs."""

    def __init__(self, group: Group, num_columns: int):
        super().__init__()
        self.log_softmax = ops.LogSoftmax(axis=-1)
        self.sum, self.add_at, self.stack = AllReduce(group), ops.TensorScatterAdd(), ops.Stack(axis=1)
        self.product, self.ones_like, self.zeros_like = ops.MatMul(), ops.OnesLike(), ops.ZerosLike()
        self.first, self.num_columns = group.index * num_columns, num_columns
        self.before, self.after = group.index, group.size - group.index - 1

    def here(self, labels):
        """Return the labels' columns on this process, 0 for those of others, and 1 for each that is here (R,) fp32."""
        columns = labels - self.first
        is_here = ops.cast(ops.logical_and(columns >= 0, columns < self.num_columns), ms.float32)
        return columns * ops.cast(is_here, ms.int32), is_here

    def construct(self, logits, labels):
        """logits (R, V), labels (R,) int32 -> nll (R,), log-probabilities (R, V) among this process' columns, and
        the logarithm of these columns' probability (R,).
        """
        logits = ops.cast(logits, ms.float32)
        log_probabilities = self.log_softmax(logits)
        local_sum = (logits[:, :1] - log_probabilities[:, :1]).reshape(1, -1)  # log-sum-exp of the local columns
        columns, is_here = self.here(labels)
        chosen = ops.gather_elements(logits, 1, columns.reshape(-1, 1)).reshape(1, -1) * is_here
        zeros = self.zeros_like(local_sum)
        rows = (zeros,) * self.before + (local_sum,) + (zeros,) * self.after + (chosen,)
        gathered = self.sum(ops.concat(rows, 0))  # every process's log-sum-exp, then the labels' logits
        sums = gathered[:-1]
        largest = ops.ReduceMax()(sums, 0)
        total = largest + ops.log(ops.reduce_sum(ops.exp(sums - largest), 0))
        return total - gathered[-1], log_probabilities, local_sum.reshape(-1) - total

    def bprop(self, logits, labels, out, dout):
        """Return softmax minus one-hot of this process's columns."""
        scale = ops.exp(out[2]) * dout[0]
        gradient = ops.exp(out[1]) * self.product(scale.reshape(-1, 1), self.ones_like(out[1][:1]))
        columns, is_here = self.here(labels)
        coordinates = self.stack((ops.arange(labels.shape[0]).astype(ms.int32), columns))  # (R, 2)
        return ops.cast(self.add_at(gradient, coordinates, -dout[0] * is_here), logits.dtype), ops.zeros_like(labels)


class TensorParallelGPT2(GPT2):
    """GPT-2 of which this process computes a slice of every layer.

    `logits` gathers all columns on every process; `weighted_loss`, which training uses, does not.
    """

    def __init__(self, model: ModelConfig, hardware: HardwareConfig, mesh: Mesh, recompute: str = "none"):
        super().__init__(model, hardware)
        parallel, group = mesh.coordinates.parallel, mesh.tensor
        assert group is not None
        self.splits_tokens, self.splits_vocabulary = parallel.sequence_parallel, parallel.vocab_parallel
        self.enter = CopyToGroup(group)  # before the slice of the head
        ends: tuple[nn.Cell, nn.Cell] = (CopyToGroup(group), SumOverGroup(group))
        self.split = self.join = None
        if self.splits_tokens:
            ends = GatherTokens(group), ScatterTokens(group)
            self.split, self.join = SplitTokens(group), JoinTokens(group)
        self.tensor_index, self.tensor_size = group.index, group.size
        for layer, block in enumerate(self.h):
            block.attn = TensorParallelAttention(model, self.backend, layer, group, ends)
            block.mlp = TensorParallelFeedForward(model, self.backend, group, ends)
        self.gather = None
        if self.splits_vocabulary:
            num_rows = stats.padded_vocab_size(model) // group.size
            self.wte = VocabParallelEmbedding(num_rows, model.hidden_size, self.backend, group)
            if self.lm_head is not None:
                self.lm_head = Embedding(num_rows, model.hidden_size, self.backend)
            if self.padding is not None:
                first = group.index * num_rows
                self.padding = Tensor(self.padding.asnumpy()[:, first : first + num_rows])
            self.gather, self.head_loss = AllGather(group), None
            self.cross_entropy = VocabParallelCrossEntropy(group, num_rows)
        name_parameters(self)
        recompute_blocks(self, recompute)

    def spread(self, randomness, batch_size):
        """Return randomness with the positions of this process's tokens, then those of all tokens, for attention."""
        if randomness is None or not self.splits_tokens:
            return randomness
        tokens = randomness[1].reshape(batch_size, -1)  # (B, T)
        size = tokens.shape[1] // self.tensor_size
        local_tokens = tokens[:, self.tensor_index * size : (self.tensor_index + 1) * size]
        return randomness[0], local_tokens.reshape(-1, 1), randomness[1]

    def begin(self, ids, randomness, starts=None):
        """Embed, as `GPT2.begin`: ids (B, T) int32 -> (B, T or t, D)."""
        positions = ops.arange(ids.shape[1]).astype(ms.int32)
        x = self.embed(ids, positions if starts is None else positions.reshape(1, -1) - starts)
        if self.dropout is not None and randomness is not None:
            x = self.dropout(x, randomness[0], randomness[1])
        return x if self.split is None else self.split(x)

    def end(self, x):
        """Return the last layer norm: x (B, T or t, D) -> (B, T, D)."""
        x = self.ln_f(x)
        return x if self.join is None else self.join(x)

    def construct(self, ids, randomness, starts=None):
        """Hidden states after the last layer norm, as `GPT2.construct`: ids (B, T) int32 -> (B, T, D)."""
        x, segments = self.begin(ids, randomness, starts), self.segments(starts)
        randomness = self.spread(randomness, ids.shape[0])
        for block in self.h:
            x = block(x, randomness, segments)
        return self.end(x)

    def logits(self, hidden, head=None):
        """hidden (..., D) -> (R, all of the vocabulary) for the R rows of hidden."""
        logits = self.head_product(hidden, head)
        if self.gather is None:
            return logits
        num_rows = logits.shape[0]
        return self.gather(logits).reshape(self.tensor_size, num_rows, -1).transpose(1, 0, 2).reshape(num_rows, -1)

    def token_losses(self, hidden, labels):
        """hidden (..., D), labels (R,) int32 -> nll (R,) fp32."""
        return super().token_losses(hidden if self.gather is None else self.enter(hidden), labels)


def build_net(model: ModelConfig, hardware: HardwareConfig, mesh: Mesh) -> GPT2:
    """Return the model as this process computes it; its parameters take no memory until they are loaded."""
    parallel = mesh.coordinates.parallel
    recompute = "none" if parallel.splits_weights else parallel.recompute  # a graph per block recomputes anyway
    with nn.utils.no_init_parameters():
        if mesh.tensor is None:
            return (Classifier if model.is_classifier else GPT2)(model, hardware, recompute)
        return TensorParallelGPT2(model, hardware, mesh, recompute)
