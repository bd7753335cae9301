"""GPT-2 (Radford et al., 2019) for one device: the maths, and nothing of layouts, optimizer or training.

Parameters carry Hugging Face's names without `transformer.` (modeling_gpt2.py) and its `Conv1D` layout (in, out).

Legend: B batch, T tokens, S cached positions, D hidden, N heads, H head dim, F feed-forward, V (padded) vocab.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x import ops as kernels
from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.model import stats


def zeros(*shape: int) -> Parameter:
    """An fp32 parameter whose values come later, by `load_weights`."""
    return Parameter(initializer("zeros", shape, ms.float32))


class Linear(nn.Cell):
    """x W + b with W in Hugging Face's Conv1D layout, multiplied in the compute dtype."""

    def __init__(self, in_size: int, out_size: int, dtype):
        super().__init__()
        self.weight = zeros(in_size, out_size)
        self.bias = zeros(out_size)
        self.out_size, self.dtype = out_size, dtype
        self.affine = kernels.linear(dtype)
        self.branch = None  # a Cell beside the product, of (x, randomness), whose rows (R, out) are added to it

    def product(self, x, randomness=None):
        """x (..., in) -> (R, out), without the bias, for the R rows of x."""
        return self.with_branch(self.affine(x.reshape(-1, x.shape[-1]), self.weight), x, randomness)

    def with_branch(self, rows, x, randomness):
        """rows (R, out) of x (..., in), and what the branch adds to them."""
        return rows if self.branch is None else rows + self.branch(x, randomness)

    def add_bias(self, rows, shape):
        """rows (R, out) -> (*shape, out)."""
        return ops.bias_add(rows, ops.cast(self.bias, self.dtype)).reshape((*shape, self.out_size))

    def construct(self, x, randomness=None):
        """x (..., in) -> (..., out); randomness as in `GPT2.construct`."""
        rows = self.affine(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return self.with_branch(rows, x, randomness).reshape((*x.shape[:-1], self.out_size))


class LayerNorm(nn.Cell):
    """Layer normalisation with its weight and bias; the formula is the device's."""

    def __init__(self, model: ModelConfig, hardware: HardwareConfig):
        super().__init__()
        self.weight = zeros(model.hidden_size)
        self.bias = zeros(model.hidden_size)
        dtype = kernels.DTYPES[hardware.precision]
        self.norm = kernels.layer_norm(model.hidden_size, model.layer_norm_eps, hardware.device_target, dtype)

    def construct(self, x):
        """x (..., D) -> (..., D)."""
        return self.norm(x, self.weight, self.bias)


class Embedding(nn.Cell):
    """A table of fp32 rows."""

    def __init__(self, num_rows: int, hidden_size: int):
        super().__init__()
        self.weight = zeros(num_rows, hidden_size)

    def construct(self, ids):
        """ids (...) int32 -> (..., D) fp32."""
        return ops.gather(self.weight, ids, 0)


class SelfAttention(nn.Cell):
    """Causal multi-head self-attention."""

    def __init__(self, model: ModelConfig, hardware: HardwareConfig, site: int):
        super().__init__()
        dtype = kernels.DTYPES[hardware.precision]
        self.num_heads, self.head_dim = model.num_heads, model.hidden_size // model.num_heads
        self.c_attn = Linear(model.hidden_size, 3 * model.hidden_size, dtype)
        self.c_proj = Linear(model.hidden_size, model.hidden_size, dtype)
        self.attention = attention(model, hardware, site, model.num_heads)

    def queries_keys_values(self, x, randomness=None):
        """x (B, T, D) -> three times (B, N, T, H)."""
        return self.attention.split(self.c_attn(x, randomness))

    def merge(self, x, randomness=None):
        """x (B, N, T, H) -> (B, T, D), projected."""
        return self.c_proj(self.attention.merge(x), randomness)

    def construct(self, x, randomness, starts=None):
        """x (B, T, D), starts as in `GPT2.construct` -> (B, T, D)."""
        return self.c_proj(self.attention(self.c_attn(x, randomness), randomness, starts), randomness)


def attention(model: ModelConfig, hardware: HardwareConfig, site: int, num_heads: int, first_head: int = 0) -> nn.Cell:
    """The attention of some of the heads; `place` is that of its dropout."""
    rate = model.dropout if model.attention_dropout is None else model.attention_dropout
    dtype = kernels.DTYPES[hardware.precision]
    return kernels.attention(
        num_heads, model.hidden_size // model.num_heads, model.max_seq_len,
        kernels.dropout(rate, site, model.max_seq_len, dtype),
        hardware.device_target, dtype, hardware.flash_attention, first_head, model.num_heads,
    )  # fmt: skip


class FeedForward(nn.Cell):
    """Two linears with an activation between."""

    def __init__(self, model: ModelConfig, hardware: HardwareConfig):
        super().__init__()
        dtype = kernels.DTYPES[hardware.precision]
        self.c_fc = Linear(model.hidden_size, stats.ffn_size(model), dtype)
        self.c_proj = Linear(stats.ffn_size(model), model.hidden_size, dtype)
        self.activation = kernels.activation(model.activation, hardware.device_target, dtype)

    def construct(self, x, randomness=None):
        """x (..., D) -> (..., D)."""
        return self.c_proj(self.activation(self.c_fc(x, randomness)), randomness)


class Block(nn.Cell):
    """A pre-norm transformer block."""

    def __init__(self, model: ModelConfig, hardware: HardwareConfig, layer: int):
        super().__init__()
        site = 1 + 3 * layer  # dropout places: 0 the embedding, then three a block
        self.ln_1 = LayerNorm(model, hardware)
        self.attn = SelfAttention(model, hardware, site)
        self.ln_2 = LayerNorm(model, hardware)
        self.mlp = FeedForward(model, hardware)
        dtype = kernels.DTYPES[hardware.precision]
        self.attn_dropout = kernels.dropout(model.dropout, site + 1, model.hidden_size, dtype)
        self.mlp_dropout = kernels.dropout(model.dropout, site + 2, model.hidden_size, dtype)

    def add(self, x, branch, dropout, randomness):
        """The residual sum, with dropout on the branch."""
        if dropout is not None and randomness is not None:
            branch = dropout(branch, randomness[0], randomness[1])
        return x + branch

    def feed_forward(self, x, randomness):
        """The second half of the block: x (B, T, D) -> (B, T, D)."""
        return self.add(x, self.mlp(self.ln_2(x), randomness), self.mlp_dropout, randomness)

    def construct(self, x, randomness, starts=None):
        """x (B, T, D), starts as in `GPT2.construct` -> (B, T, D)."""
        x = self.add(x, self.attn(self.ln_1(x), randomness, starts), self.attn_dropout, randomness)
        return self.feed_forward(x, randomness)


class GPT2(nn.Cell):
    """The transformer and its head.

    `construct` gives hidden states, `logits` applies the head: a loss that fuses the head needs them apart.
    """

    def __init__(self, model: ModelConfig, hardware: HardwareConfig, recompute: str = "none"):
        super().__init__()
        self.hidden_size, self.dtype = model.hidden_size, kernels.DTYPES[hardware.precision]
        num_rows = stats.padded_vocab_size(model)
        self.wte = Embedding(num_rows, model.hidden_size)
        self.wpe = Embedding(model.max_seq_len, model.hidden_size)
        rate = model.dropout if model.embedding_dropout is None else model.embedding_dropout
        self.dropout = kernels.dropout(rate, 0, model.hidden_size, self.dtype)
        self.h = nn.CellList([Block(model, hardware, layer) for layer in range(model.num_layers)])
        self.ln_f = LayerNorm(model, hardware)
        has_own_head = not (model.tie_embeddings or model.labels)  # a classifier's is in gpt2x.model.classifier
        self.lm_head = Embedding(num_rows, model.hidden_size) if has_own_head else None
        self.cross_entropy = kernels.composed.CrossEntropy()
        # None: logits exist whole, and `cross_entropy` takes them
        self.fused_head = kernels.native.HeadLoss(model.vocab_size) if kernels.is_native(self.dtype) else None
        self.padding = None
        if num_rows > model.vocab_size:
            row = np.zeros((1, num_rows), np.float32)
            row[:, model.vocab_size :] = -1e9 if hardware.precision != "fp16" else -6e4
            self.padding = Tensor(row)
        name_parameters(self)
        recompute_blocks(self, recompute)

    def embed(self, ids, positions):
        """ids (B, T) int32, positions (T,) or (B, T) int32 -> (B, T, D) in the compute dtype."""
        return ops.cast(self.wte(ids) + self.wpe(positions), self.dtype)

    def begin(self, ids, randomness, starts=None):
        """What enters the first block: ids (B, T) int32, starts as in `construct` -> (B, T, D)."""
        positions = ops.arange(ids.shape[1]).astype(ms.int32)
        x = self.embed(ids, positions if starts is None else positions.reshape(1, -1) - starts)
        if self.dropout is not None and randomness is not None:
            x = self.dropout(x, randomness[0], randomness[1])
        return x

    def end(self, x):
        """The last layer norm: x (B, T, D) -> (B, T, D)."""
        return self.ln_f(x)

    def construct(self, ids, randomness, starts=None):
        """Hidden states after the last layer norm.

        ids: (B, T) int32.
        randomness: None (no dropout), or (key, rows): the int32 scalar of (seed, step) and the (B * T, 1) int32
            logical positions of the tokens within the global batch.
        starts: None, or of rows that hold several texts the column at which each token's text begins, (B, T) int32:
            positions are counted from there, and nothing before it is attended.
        Returns (B, T, D).
        """
        x = self.begin(ids, randomness, starts)
        for block in self.h:
            x = block(x, randomness, starts)
        return self.end(x)

    def head(self):
        """The head's matrix (V, D) in the compute dtype."""
        return ops.cast(self.wte.weight if self.lm_head is None else self.lm_head.weight, self.dtype)

    def logits(self, hidden, head=None):
        """hidden (..., D) -> (R, V) for the R rows of hidden; columns of the padding are far below any other.

        head: `head()`, from a graph that has read it before.
        """
        return self.head_product(hidden, head)

    def token_losses(self, hidden, labels):
        """Each label's negative log-likelihood in nats: hidden (..., D), labels (R,) int32 -> (R,) fp32.

        Of `fused_head` without a gradient: that is `weighted_loss`'s.
        """
        if self.fused_head is not None:
            return self.fused_head.losses(hidden.reshape(-1, self.hidden_size), self.head(), labels)
        return self.cross_entropy(self.head_product(hidden), labels)

    def weighted_loss(self, hidden, labels, weights, is_head_trained):
        """The sum of weights (R,) times `token_losses`: scalar fp32; is_head_trained: `is_head_trained()`."""
        if self.fused_head is not None:
            rows, head = hidden.reshape(-1, self.hidden_size), self.head()
            return self.fused_head(rows, head, labels, weights, is_head_trained)
        return ops.reduce_sum(self.token_losses(hidden, labels) * weights)

    def is_head_trained(self) -> bool:
        """Whether the head's matrix has a gradient; graphs cannot ask."""
        return (self.wte if self.lm_head is None else self.lm_head).weight.requires_grad

    def head_product(self, hidden, head=None):
        """As `logits`."""
        rows = hidden.reshape(-1, self.hidden_size)
        logits = ops.MatMul(transpose_b=True)(rows, self.head() if head is None else head)
        return logits if self.padding is None else logits + ops.cast(self.padding, logits.dtype)


def name_parameters(net: nn.Cell) -> None:
    """Name every parameter by its path in `net`, which is the name of the logical tensor."""
    for name, parameter in net.parameters_and_names():
        parameter.name = name


def recompute_blocks(net: GPT2, recompute: str) -> None:
    """Have activations recomputed in backward: those of whole blocks, of attention alone, or none."""
    for block in net.h:
        if recompute == "block":
            block.recompute()
        elif recompute == "attention":
            block.attn.attention.recompute_weights()


class InitialWeights(Mapping[str, np.ndarray]):
    """Fresh weights, each drawn when it is asked for.

    N(0, initializer_range), biases 0, layer norms 1, residual projections scaled by 1 / sqrt(2 num_layers) (Radford
    et al., 2019, section 2.3; transformers' `_init_weights`). Values depend on the seed and the tensor's name alone.
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
        """A box of a tensor."""
        return self[name][tuple(slice(at, at + size) for at, size in zip(start, shape, strict=True))]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def initial_weights(model: ModelConfig, seed: int) -> InitialWeights:
    """Fresh weights of a model."""
    return InitialWeights(model, seed)


def load_weights(net: GPT2, weights: Mapping[str, np.ndarray]) -> None:
    """Set the parameters of `net` from logical tensors."""
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(with_padding(weights[parameter.name], parameter.shape)))


def with_padding(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An fp32 copy of a logical tensor with zero rows added up to `shape`: those of a padded vocabulary."""
    padded = np.zeros(shape, np.float32)
    padded[: value.shape[0]] = value
    return padded


def logical_weights(net: GPT2, model: ModelConfig) -> dict[str, np.ndarray]:
    """The logical tensors of `net`: its parameters without the rows of the padded vocabulary."""
    shapes = stats.tensor_shapes(model)
    return {name: parameter.asnumpy()[: shapes[name][0]] for name, parameter in net.parameters_and_names()}
