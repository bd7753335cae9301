"""GPT-2 (Radford et al., 2019) for one device: the maths, without layouts, optimizer or training.

Parameters have Hugging Face's names without `transformer.` (modeling_gpt2.py) and its `Conv1D` layout (in, out).
Operators come from the backend of the hardware (`gpt2x.ops`): a net makes it once, and every cell takes it.

Shapes in comments are those of the line's result. Legend: B batch, T tokens, R = B T rows, D hidden, N heads, H = D / N
head dim, F feed-forward, V (padded) vocab.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.model import stats
from gpt2x.ops import Backend, backend_of


def zeros(*shape: int) -> Parameter:
    """Return an fp32 parameter; `load_weights` sets its values later."""
    return Parameter(initializer("zeros", shape, ms.float32))


class Linear(nn.Cell):
    """x W + b with W in Hugging Face's Conv1D layout, multiplied in the compute dtype.

    Attributes:
        branch: None, or a Cell beside the product, of (x, randomness) -> (R, out), that is added to it.
    """

    def __init__(self, in_size: int, out_size: int, backend: Backend):
        super().__init__()
        self.weight = zeros(in_size, out_size)
        self.bias = zeros(out_size)
        self.out_size, self.backend, self.dtype = out_size, backend, backend.dtype
        self.affine = backend.linear()
        self.branch: nn.Cell | None = None

    def product(self, x, randomness=None):
        """x (..., in) -> (R, out), without the bias, for the R rows of x."""
        rows = self.affine(x.reshape(-1, x.shape[-1]), self.weight)  # (R, out)
        return self.with_branch(rows, x, randomness)  # (R, out)

    def with_branch(self, rows, x, randomness):
        """rows (R, out) of x (..., in) -> rows plus what the branch adds (R, out)."""
        return rows if self.branch is None else rows + self.branch(x, randomness)

    def add_bias(self, rows, shape):
        """rows (R, out) -> (*shape, out)."""
        return ops.bias_add(rows, ops.cast(self.bias, self.dtype)).reshape((*shape, self.out_size))

    def construct(self, x, randomness=None):
        """x (..., in) -> (..., out); randomness as in `GPT2.construct`."""
        rows = self.affine(x.reshape(-1, x.shape[-1]), self.weight, self.bias)  # (R, out)
        return self.with_branch(rows, x, randomness).reshape((*x.shape[:-1], self.out_size))  # (..., out)


class LayerNorm(nn.Cell):
    """Layer normalisation with its weight and bias."""

    def __init__(self, model: ModelConfig, backend: Backend):
        super().__init__()
        self.weight = zeros(model.hidden_size)
        self.bias = zeros(model.hidden_size)
        self.norm = backend.layer_norm(model.hidden_size, model.layer_norm_eps)

    def construct(self, x):
        """x (..., D) -> (..., D)."""
        return self.norm(x, self.weight, self.bias)  # (..., D)


class Embedding(nn.Cell):
    """A table of fp32 rows."""

    def __init__(self, num_rows: int, hidden_size: int, backend: Backend):
        super().__init__()
        self.weight, self.rows = zeros(num_rows, hidden_size), backend.embedding()

    def construct(self, ids):
        """ids (...) int32 -> (..., D) fp32."""
        return self.rows(ids, self.weight)  # (..., D)


class SelfAttention(nn.Cell):
    """Causal multi-head self-attention."""

    def __init__(self, model: ModelConfig, backend: Backend, site: int):
        super().__init__()
        self.num_heads, self.head_dim = model.num_heads, model.hidden_size // model.num_heads
        self.c_attn = Linear(model.hidden_size, 3 * model.hidden_size, backend)
        self.c_proj = Linear(model.hidden_size, model.hidden_size, backend)
        self.attention = attention(model, backend, site, model.num_heads)

    def queries_keys_values(self, x, randomness=None):
        """x (B, T, D) -> three times (B, N, T, H)."""
        qkv = self.c_attn(x, randomness)  # (B, T, 3D)
        return self.attention.split(qkv)  # three times (B, N, T, H)

    def merge(self, x, randomness=None):
        """x (B, N, T, H) -> (B, T, D), projected."""
        merged = self.attention.merge(x)  # (B, T, D)
        return self.c_proj(merged, randomness)  # (B, T, D)

    def construct(self, x, randomness, segments=None):
        """x (B, T, D) -> (B, T, D); randomness as in `GPT2.construct`, segments as in `Block.construct`."""
        qkv = self.c_attn(x, randomness)  # (B, T, 3D)
        attended = self.attention(qkv, randomness, segments)  # (B, T, D)
        return self.c_proj(attended, randomness)  # (B, T, D)


def attention(model: ModelConfig, backend: Backend, site: int, num_heads: int, first_head: int = 0) -> nn.Cell:
    """Return the attention of `num_heads` heads from `first_head` on; `site` is that of its dropout."""
    rate = stats.attention_dropout(model)
    dropout = backend.dropout(rate, site, model.max_seq_len)
    head_dim = model.hidden_size // model.num_heads
    return backend.attention(num_heads, head_dim, model.max_seq_len, dropout, first_head, model.num_heads)


class FeedForward(nn.Cell):
    """Two linears with an activation between them."""

    def __init__(self, model: ModelConfig, backend: Backend):
        super().__init__()
        self.c_fc = Linear(model.hidden_size, stats.ffn_size(model), backend)
        self.c_proj = Linear(stats.ffn_size(model), model.hidden_size, backend)
        self.activation = backend.activation(model.activation)

    def construct(self, x, randomness=None):
        """x (..., D) -> (..., D)."""
        x = self.activation(self.c_fc(x, randomness))  # (..., F)
        return self.c_proj(x, randomness)  # (..., D)


class Block(nn.Cell):
    """A pre-norm transformer block."""

    def __init__(self, model: ModelConfig, backend: Backend, layer: int):
        super().__init__()
        site = 1 + 3 * layer  # site 0 is the embedding's dropout, then three per block
        self.ln_1 = LayerNorm(model, backend)
        self.attn = SelfAttention(model, backend, site)
        self.ln_2 = LayerNorm(model, backend)
        self.mlp = FeedForward(model, backend)
        self.attn_dropout = backend.dropout(model.dropout, site + 1, model.hidden_size)
        self.mlp_dropout = backend.dropout(model.dropout, site + 2, model.hidden_size)

    def add(self, x, branch, dropout, randomness):
        """Return the residual sum x + dropout(branch): all (B, T, D)."""
        if dropout is not None and randomness is not None:
            branch = dropout(branch, randomness[0], randomness[1])  # (B, T, D)
        return x + branch  # (B, T, D)

    def feed_forward(self, x, randomness):
        """Return the second half of the block: x (B, T, D) -> (B, T, D)."""
        return self.add(x, self.mlp(self.ln_2(x), randomness), self.mlp_dropout, randomness)  # (B, T, D)

    def construct(self, x, randomness, segments=None):
        """x (B, T, D) -> (B, T, D); randomness as in `GPT2.construct`, segments: the result of `GPT2.segments`."""
        x = self.add(x, self.attn(self.ln_1(x), randomness, segments), self.attn_dropout, randomness)  # (B, T, D)
        return self.feed_forward(x, randomness)  # (B, T, D)


class GPT2(nn.Cell):
    """The transformer and its head.

    `construct` returns hidden states and `logits` applies the head: a loss that fuses the head needs them apart.

    Attributes:
        backend: the operators of `hardware`, for the net and for what computes with it.
        head_loss: head and cross entropy as one Cell; None if the logits exist whole, for `cross_entropy`.
        decoder_kernels: fused kernels for decoding; None if the cells decode.
        sharded_blocks: the blocks, if replicas split their weights (`gpt2x.parallel.full_sharding`); else None.
    """

    def __init__(self, model: ModelConfig, hardware: HardwareConfig, recompute: str = "none"):
        super().__init__()
        self.backend = backend = backend_of(hardware)
        self.hidden_size, self.dtype = model.hidden_size, backend.dtype
        num_rows = stats.padded_vocab_size(model)
        assert model.vocab_size is not None
        self.wte = Embedding(num_rows, model.hidden_size, backend)
        self.wpe = Embedding(model.max_seq_len, model.hidden_size, backend)
        rate = model.dropout if model.embedding_dropout is None else model.embedding_dropout
        self.dropout = backend.dropout(rate, 0, model.hidden_size)
        self.h = nn.CellList([Block(model, backend, layer) for layer in range(model.num_layers)])
        self.ln_f = LayerNorm(model, backend)
        has_lm_head = not (model.tie_embeddings or model.labels)  # a classifier's head is in gpt2x.model.classifier
        self.lm_head = Embedding(num_rows, model.hidden_size, backend) if has_lm_head else None
        self.cross_entropy = backend.cross_entropy()
        self.head_loss = backend.head_loss(model.vocab_size)
        self.decoder_kernels = backend.decoder(model.activation)
        self.padding: Tensor | None = None
        self.sharded_blocks: Any | None = None
        if num_rows > model.vocab_size:
            row = np.zeros((1, num_rows), np.float32)
            row[:, model.vocab_size :] = -1e9 if hardware.precision != "fp16" else -6e4
            self.padding = Tensor(row)
        name_parameters(self)
        recompute_blocks(self, recompute)

    def embed(self, ids, positions):
        """ids (B, T) int32, positions (T,) or (B, T) int32 -> (B, T, D) in the compute dtype."""
        return ops.cast(self.wte(ids) + self.wpe(positions), self.dtype)  # (B, T, D)

    def begin(self, ids, randomness, starts=None):
        """Return what enters the first block: ids (B, T) int32 -> (B, T, D); other arguments as in `construct`."""
        positions = ops.arange(ids.shape[1]).astype(ms.int32)  # (T,)
        x = self.embed(ids, positions if starts is None else positions.reshape(1, -1) - starts)  # (B, T, D)
        if self.dropout is not None and randomness is not None:
            x = self.dropout(x, randomness[0], randomness[1])  # (B, T, D)
        return x

    def segments(self, starts):
        """Return what the attention of every block reads of `starts`; None for None."""
        return None if starts is None else self.h[0].attn.attention.segments(starts)

    def end(self, x):
        """Return the last layer norm: x (B, T, D) -> (B, T, D)."""
        return self.ln_f(x)  # (B, T, D)

    def construct(self, ids, randomness, starts=None):
        """Hidden states after the last layer norm.

        ids: (B, T) int32.
        randomness: None (no dropout), or (key, rows): the int32 scalar of (seed, step) and the (B * T, 1) int32
            logical positions of the tokens within the global batch.
        starts: None, or (B, T) int32 for rows of several segments: the column at which each token's segment begins.
            Positions count from there, and no token attends to anything before it.
        Returns (B, T, D).
        """
        x, segments = self.begin(ids, randomness, starts), self.segments(starts)  # (B, T, D)
        for block in self.h:
            x = block(x, randomness, segments)  # (B, T, D)
        return self.end(x)  # (B, T, D)

    def head(self):
        """Return the head's matrix (V, D) in the compute dtype."""
        return ops.cast(self.wte.weight if self.lm_head is None else self.lm_head.weight, self.dtype)

    def logits(self, hidden, head=None):
        """hidden (..., D) -> (R, V) for the R rows of hidden; columns of the padding are far below all others.

        head: the result of `head()` if the graph has it already; None: read it.
        """
        return self.head_product(hidden, head)

    def token_losses(self, hidden, labels):
        """Return each label's negative log-likelihood in nats: hidden (..., D), labels (R,) int32 -> (R,) fp32.

        With `head_loss` it has no gradient; `weighted_loss` does.
        """
        if self.head_loss is not None:
            return self.head_loss.losses(hidden.reshape(-1, self.hidden_size), self.head(), labels)  # (R,)
        return self.cross_entropy(self.head_product(hidden), labels)  # (R,)

    def weighted_loss(self, hidden, labels, weights, is_head_trained):
        """Return the sum of weights (R,) times `token_losses` (R,): scalar fp32.

        is_head_trained: the result of `is_head_trained()`, asked outside of the graph.
        """
        if self.head_loss is not None:
            rows, head = hidden.reshape(-1, self.hidden_size), self.head()  # (R, D), (V, D)
            return self.head_loss(rows, head, labels, weights, is_head_trained)
        return ops.reduce_sum(self.token_losses(hidden, labels) * weights)

    def is_head_trained(self) -> bool:
        """Return whether the head's matrix has a gradient. Graphs cannot ask this."""
        return (self.wte if self.lm_head is None else self.lm_head).weight.requires_grad

    def head_product(self, hidden, head=None):
        """Return the same as `logits`, which layouts override."""
        rows = hidden.reshape(-1, self.hidden_size)  # (R, D)
        logits = ops.MatMul(transpose_b=True)(rows, self.head() if head is None else head)  # (R, V)
        return logits if self.padding is None else logits + ops.cast(self.padding, logits.dtype)


def dropout_randomness(has_dropout: bool, key, first_row, batch_size: int, length: int, row_length: int | None = None):
    """Return the dropout key and the logical positions (B * T, 1) of B rows of T tokens; None without dropout.

    row_length: the positions of a row, at least T, so that masks do not depend on the padding; None: T.
    """
    if not has_dropout:
        return None
    rows = (first_row + ops.arange(batch_size).astype(ms.int32)).reshape(-1, 1) * (row_length or length)
    return key, (rows + ops.arange(length).astype(ms.int32).reshape(1, -1)).reshape(-1, 1)


def name_parameters(net: nn.Cell) -> None:
    """Name every parameter by its path in `net`, which is the name of its logical tensor."""
    for name, parameter in net.parameters_and_names():
        parameter.name = name


def recompute_blocks(net: GPT2, recompute: str) -> None:
    """Recompute in backward the activations of whole blocks, of attention only, or none."""
    for block in net.h:
        if recompute == "block":
            block.recompute()
        elif recompute == "attention":
            block.attn.attention.recompute_weights()


class InitialWeights(Mapping[str, np.ndarray]):
    """Fresh weights, each drawn when it is read.

    N(0, initializer_range), biases 0, layer norms 1, residual projections scaled by 1 / sqrt(2 num_layers) (Radford
    et al., 2019, section 2.3; transformers' `_init_weights`). Values depend only on the seed and the tensor's name.
    """

    def __init__(self, model: ModelConfig, seed: int):
        self.model, self.seed, self.shapes = model, seed, stats.tensor_shapes(model)

    def __getitem__(self, name: str) -> np.ndarray:
        model, shape = self.model, self.shapes[name]
        if len(shape) == 1:
            return np.full(shape, 1.0 if name.endswith(".weight") else 0.0, np.float32)
        scale = model.initializer_range
        if model.scale_residual_init and name.endswith("c_proj.weight"):
            scale /= math.sqrt(2 * model.num_layers)
        index = list(self.shapes).index(name)
        generator = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, index]))
        return generator.standard_normal(shape, np.float32) * np.float32(scale)

    def read(self, name: str, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Return a box of a tensor."""
        return self[name][tuple(slice(at, at + size) for at, size in zip(start, shape, strict=True))]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def initial_weights(model: ModelConfig, seed: int) -> InitialWeights:
    """Return fresh weights of a model."""
    return InitialWeights(model, seed)


def load_weights(net: GPT2, weights: Mapping[str, np.ndarray]) -> None:
    """Set the parameters of `net` from logical tensors."""
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(with_padding(weights[parameter.name], parameter.shape)))


def with_padding(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an fp32 copy of a logical tensor with zero rows added up to `shape`, for a padded vocabulary."""
    padded = np.zeros(shape, np.float32)
    padded[: value.shape[0]] = value
    return padded


def logical_weights(net: GPT2, model: ModelConfig) -> dict[str, np.ndarray]:
    """Return the logical tensors of `net`: its parameters without the padding rows of the vocabulary."""
    shapes = stats.tensor_shapes(model)
    return {name: parameter.asnumpy()[: shapes[name][0]] for name, parameter in net.parameters_and_names()}
