"""A model with a cache of several slots: a prompt enters one, a step goes over all (floor 3).

A prompt is decoded alone, in a cache as long as its bucket, and what it leaves there is copied into its slot. So a slot
can be filled while the others are in the middle of their texts, and prompts need one graph a bucket, whatever the
number of slots and the length of their cache.

Legend: B slots, T new tokens, L tokens wanted of T, S cached positions, N heads, H head dim, W prompt bucket, V vocab.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.errors import UserError, require
from gpt2x.generate.decoder import Decoder, Graph
from gpt2x.generate.fused import Weights, is_fused
from gpt2x.model.gpt2 import GPT2

LEAST_BUCKET = 32  # tokens; shorter texts share one graph
NOT_FINITE = -1  # instead of a token


def bucket(length: int, max_seq_len: int) -> int:
    """The next power of two, LEAST_BUCKET at least and max_seq_len at most: each bucket is one graph."""
    return min(max(LEAST_BUCKET, 1 << (length - 1).bit_length()), max_seq_len)


class Likeliest(Graph):
    """The decoder's likeliest tokens, chosen inside its graph: no logits leave the device."""

    def __init__(self, decoder: Decoder):
        super().__init__(auto_prefix=False)
        self.decoder = decoder
        self.argmax = ops.Argmax(axis=-1, output_type=ms.int32)

    def construct(self, ids, positions, columns):
        """ids, positions (B, T), columns (B, L) int32 of ids -> (B, L) int32, NOT_FINITE where a logit is not."""
        logits = self.decoder.logits(ids, positions, columns)  # (B * L, V)
        is_finite = ops.isfinite(logits.sum(axis=-1))  # of a sum: one that is not makes it so, and it is a pass less
        tokens = ops.select(is_finite, self.argmax(logits), ops.full_like(is_finite, NOT_FINITE, dtype=ms.int32))
        return tokens.reshape(columns.shape)


class Entry(Graph):
    """Copies the cache of a prompt (1, N, W, H) to the beginning of a slot's, of (B, N, S, H)."""

    def __init__(self, prompt: Decoder, slots: Decoder, width: int):
        super().__init__(auto_prefix=False)
        self.sources, self.targets = prompt.blocks, slots.blocks
        self.first_places = slots.first_places  # (B, N, 1) rows of the cache
        self.positions = Tensor(np.arange(width, dtype=np.int32).reshape(1, width))
        self.write = ops.ScatterUpdate()

    def construct(self, slot):
        """slot (1,) int32 -> slot, once the copy is made."""
        places = (ops.gather(self.first_places, slot, 0).reshape(-1, 1) + self.positions).reshape(-1)  # (N * W,)
        for layer in range(len(self.sources)):
            self.write(self.targets[layer].keys, places, self.sources[layer].keys)
            self.write(self.targets[layer].values, places, self.sources[layer].values)
        return slot


class Slots:
    """A model's graphs and caches. Graphs are compiled when a shape is first met, and kept.

    Args:
        net: the model, whose parameters count as they are at the time of a call.
        model: its shape.
        hardware: the device.

    Attributes:
        count: B.
        cache_len: S.
        compile_seconds: spent on compilation so far.
        num_passes: calls of `enter` and `step` so far.
    """

    def __init__(self, net: GPT2, model: ModelConfig, hardware: HardwareConfig):
        self._weights: Weights | None = None
        self.net, self.model, self.hardware = net, model, hardware
        self.count = self.cache_len = self.num_passes = 0
        self.compile_seconds = 0.0
        self._is_greedy = False
        self._decoders: dict[tuple[str, int, int], Decoder] = {}
        self._likeliest: dict[Decoder, Likeliest] = {}
        self._entries: dict[tuple[int, int, int], Entry] = {}
        self._compiled: set[tuple[int, ...]] = set()

    def open(
        self,
        count: int,
        lengths: Sequence[int],
        max_new_tokens: int,
        steps: Iterable[tuple[int, int]],
        is_greedy: bool,
        weights: str = "fp32",
    ) -> None:
        """Make ready for prompts, in place of what the slots held.

        Args:
            count: how many slots.
            lengths: of all prompts that will enter.
            max_new_tokens: behind each.
            steps: (T, L) of the steps to come.
            is_greedy: whether `enter` and `step` give the likeliest tokens; else logits, and L is 1.
            weights: what a step reads, fp32, bf16 or int8.

        Raises:
            UserError: weights of another type than fp32 where no kernels read them.
        """
        begin = time.perf_counter()
        self._choose_weights(weights)
        self.count, self._is_greedy = count, is_greedy
        self.cache_len = bucket(max(lengths) + max_new_tokens, self.model.max_seq_len)
        slots = self._decoder("slots", count, self.cache_len)
        for num_tokens, num_wanted in steps:
            self._compile(self._graph(slots), *self._inputs(count, num_tokens, num_wanted))
        if self._weights is not None:
            for block in slots.blocks:
                self._weights.kernels.use_huge_pages(block.keys.asnumpy())
                self._weights.kernels.use_huge_pages(block.values.asnumpy())
        for width in {bucket(length, self.model.max_seq_len) for length in lengths}:
            self._compile(self._graph(self._decoder("prompt", 1, width)), *self._inputs(1, width, 1))
            self._compile(self._entry(width), Tensor(np.zeros(1, np.int32)))
        self.compile_seconds += time.perf_counter() - begin

    def enter(self, slot: int, prompt: Sequence[int]) -> np.ndarray:
        """Put a prompt into a slot; what follows it: (1, 1) tokens or (1, V) logits."""
        width = bucket(len(prompt), self.model.max_seq_len)
        ids, positions = np.zeros((1, width), np.int32), np.arange(width, dtype=np.int32).reshape(1, width)
        ids[0, : len(prompt)] = prompt
        found = self._run("prompt", 1, width, ids, positions, np.array([[len(prompt) - 1]], np.int32))
        self._entry(width)(Tensor(np.array([slot], np.int32)))
        return found

    def step(self, texts: Mapping[int, tuple[int, Sequence[int]]], num_wanted: int = 1) -> np.ndarray:
        """Go on in slots.

        Args:
            texts: of slots the position of the first new token, and the T new tokens. What is behind the cache writes
                to its last place, which no text needs: its last token is never read.
            num_wanted: L, the tokens at the end of T whose followers are wanted.

        Returns:
            (B, L) tokens or (B, V) logits; of no meaning for slots that are not in `texts`, which write to the first
            place of their cache: a prompt that enters overwrites it.
        """
        num_tokens = len(next(iter(texts.values()))[1])
        ids, positions = np.zeros((2, self.count, num_tokens), np.int32)
        for slot, (first, tokens) in texts.items():
            ids[slot] = tokens
            positions[slot] = np.minimum(np.arange(first, first + num_tokens), self.cache_len - 1)
        columns = np.tile(np.arange(num_tokens - num_wanted, num_tokens, dtype=np.int32), (self.count, 1))
        return self._run("slots", self.count, self.cache_len, ids, positions, columns)

    def _run(self, name: str, count: int, cache_len: int, *inputs: np.ndarray) -> np.ndarray:
        """The (count, L) tokens, or (count, V) logits, of a decoder.

        Raises:
            UserError: logits that are not finite; of rows that nobody reads as well, whose tokens are real.
        """
        ids, positions, columns = (Tensor(values) for values in inputs)
        if not self._is_greedy:
            columns = Tensor(inputs[2][:, 0])
        self.num_passes += 1
        found = self._graph(self._decoder(name, count, cache_len))(ids, positions, columns).asnumpy()
        if found.min() == NOT_FINITE if self._is_greedy else not np.isfinite(found).all():
            raise UserError(
                "the model's logits are not finite: its weights are damaged, or "
                f"hardware.precision={self.hardware.precision} overflows; try hardware.precision=fp32"
            )
        return found if self._is_greedy else found[:, : self.model.vocab_size]

    def _decoder(self, name: str, count: int, cache_len: int) -> Decoder:
        key = (name, count, cache_len)
        if key not in self._decoders:
            shape = count, cache_len, f"cache.{name}"
            self._decoders[key] = Decoder(self.net, self.model, self.hardware, *shape, self._weights)
        return self._decoders[key]

    def _choose_weights(self, kind: str) -> None:
        """Copies of another type begin anew, with caches and graphs."""
        if not is_fused(self.net):
            require(
                kind == "fp32",
                f"generation.weights={kind} is read by gpt2x's own kernels alone: a whole model on the CPU in fp32, "
                "without adapters beside it (merge them), its activation gelu_new or fast_gelu, the kernels compiled "
                "and hardware.native_kernels=true; use generation.weights=fp32",
            )
        elif self._weights is None or self._weights.kind != kind:
            for found in (self._decoders, self._likeliest, self._entries, self._compiled):
                found.clear()
            self._weights = Weights(self.net, kind)

    def _graph(self, decoder: Decoder) -> Graph:
        """What is run of a decoder."""
        if not self._is_greedy:
            return decoder
        if decoder not in self._likeliest:
            self._likeliest[decoder] = Likeliest(decoder)
        return self._likeliest[decoder]

    def _entry(self, width: int) -> Entry:
        key = (self.count, self.cache_len, width)
        if key not in self._entries:
            prompt, slots = self._decoder("prompt", 1, width), self._decoder("slots", self.count, self.cache_len)
            self._entries[key] = Entry(prompt, slots, width)
        return self._entries[key]

    def _inputs(self, count: int, num_tokens: int, num_wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of a shape."""
        tokens = Tensor(np.zeros((count, num_tokens), np.int32))
        wanted = np.zeros((count, num_wanted) if self._is_greedy else count, np.int32)
        return tokens, tokens, Tensor(wanted)

    def _compile(self, cell: Graph, *inputs: Tensor) -> None:
        key = (id(cell), *(size for tensor in inputs for size in tensor.shape))
        if key not in self._compiled:
            cell.compile(*inputs)
            self._compiled.add(key)
