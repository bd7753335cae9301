"""A model with a cache of several slots: a prompt enters one slot, a step computes all of them.

A prompt is decoded alone, in a cache as long as its bucket, whose content is then copied into its slot. So a slot can
be filled while the others are in the middle of their texts. Prompts need one graph per bucket, whatever the number of
slots and the length of their cache.

Legend: B slots, T new tokens, L of them whose next token is computed, S cached positions, N heads, H head dim, W prompt
bucket, V vocab.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from mindspore import Tensor, ops

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.errors import UserError, require
from gpt2x.generate.decoder import NOT_FINITE, Decoder, Graph
from gpt2x.generate.fused import FusedDecoder, FusedEntry, Weights, is_fused
from gpt2x.generate.lengths import bucket
from gpt2x.model.gpt2 import GPT2
from gpt2x.runtime.device import compile_graph

KERNELS = (
    "gpt2x's C++ kernels. They need a whole model on the CPU in fp32 or bf16 without separate adapters (merge them), "
    "the activation gelu_new or fast_gelu, compiled kernels, and hardware.native_kernels=true"
)


class Likeliest(Graph):
    """The decoder's most likely tokens, chosen inside its graph, so that no logits leave the device."""

    def __init__(self, decoder: Decoder):
        super().__init__(auto_prefix=False)
        self.decoder = decoder

    def construct(self, ids, positions, columns):
        """ids, positions (B, T), columns (B, L) int32 of ids -> (B, L) int32, NOT_FINITE if a logit is not finite."""
        return self.decoder.likeliest(ids, positions, columns)


class Entry(Graph):
    """Copies the cache of a prompt (1, N, W, H) to the beginning of a slot's cache, within (B, N, S, H)."""

    def __init__(self, prompt: Decoder, slots: Decoder, width: int):
        super().__init__(auto_prefix=False)
        self.sources, self.targets = prompt.blocks, slots.blocks
        self.first_cache_rows = slots.first_cache_rows  # (B, N, 1) rows of the cache
        self.positions = Tensor(np.arange(width, dtype=np.int32).reshape(1, width))
        self.write = ops.ScatterUpdate()

    def construct(self, slot):
        """slot (1,) int32 -> slot, after the copy."""
        cache_rows = (ops.gather(self.first_cache_rows, slot, 0).reshape(-1, 1) + self.positions).reshape(
            -1
        )  # (N * W,)
        for layer in range(len(self.sources)):
            self.write(self.targets[layer].keys, cache_rows, self.sources[layer].keys)
            self.write(self.targets[layer].values, cache_rows, self.sources[layer].values)
        return slot


class Slots:
    """A model's graphs and caches. A graph is compiled when its shape first occurs, and then kept.

    Args:
        net: the model; its parameters are read at each call.
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
        self._is_greedy = self._keeps_prompts = False
        self._prompts: dict[int, Sequence[int]] = {}  # the last one of each width, whose cache is there
        self._decoders: dict[tuple[str, int, int], Decoder | FusedDecoder] = {}
        self._likeliest: dict[Decoder, Likeliest] = {}
        self._entries: dict[tuple[int, int, int], Entry | FusedEntry] = {}
        self._compiled: set[tuple[int, ...]] = set()

    def open(
        self,
        count: int,
        lengths: Sequence[int],
        max_new_tokens: int,
        steps: Iterable[tuple[int, int]],
        is_greedy: bool,
        weights: str = "fp32",
        cache: str = "fp32",
        keeps_prompts: bool = False,
    ) -> None:
        """Prepare for new prompts; what the slots contained is discarded.

        Args:
            count: number of slots.
            lengths: tokens of all prompts that will enter.
            max_new_tokens: maximum number of tokens after each prompt.
            steps: (T, L) of the later steps.
            is_greedy: True if `enter` and `step` return the most likely tokens; False for logits, and L is 1.
            weights: the type that a step reads: fp32, bf16, int8 or int4.
            cache: the type of cached keys and values: fp32 or bf16.
            keeps_prompts: True to compute the beginning that a prompt has in common with the one before only once.

        Raises:
            UserError: narrow types, or `keeps_prompts`, without kernels for them.
        """
        begin = time.perf_counter()
        self._choose_types(weights, cache)
        require(
            not keeps_prompts or self._weights is not None,
            f"generation.prompt_cache=true is computed only by {KERNELS}; use generation.prompt_cache=false.",
        )
        self._keeps_prompts = keeps_prompts
        self._prompts.clear()
        self.count, self._is_greedy = count, is_greedy
        self.cache_len = bucket(max(lengths) + max_new_tokens, self.model.max_seq_len)
        for decoder in self._decoders.values():
            if isinstance(decoder, FusedDecoder):
                decoder.bind()
        slots = self._decoder("slots", count, self.cache_len)
        for num_tokens, num_scored in steps:
            self._compile(slots, count, num_tokens, num_scored)
        for width in {bucket(length, self.model.max_seq_len) for length in lengths}:
            self._compile(self._decoder("prompt", 1, width), 1, width, 1)
            entry = self._entry(width)
            if isinstance(entry, Entry):
                self._compile_graph(entry, Tensor(np.zeros(1, np.int32)))
        self.compile_seconds += time.perf_counter() - begin

    def enter(self, slot: int, prompt: Sequence[int]) -> np.ndarray:
        """Put a prompt into a slot; return its next token (1, 1), or the logits (1, V)."""
        width = bucket(len(prompt), self.model.max_seq_len)
        first, end = 0, len(prompt)
        if self._weights is None:
            end = width  # a graph has one length
        elif self._keeps_prompts:
            first = common_length(prompt[:-1], self._prompts.get(width, ()))
            first = first if 2 * first >= len(prompt) else 0  # a longer rest is faster as a whole prompt
            self._prompts[width] = list(prompt)
        ids, positions = np.zeros((1, end - first), np.int32), np.arange(first, end, dtype=np.int32).reshape(1, -1)
        ids[0, : len(prompt) - first] = prompt[first:]
        output = self._run("prompt", 1, width, ids, positions, np.array([[len(prompt) - 1 - first]], np.int32))
        entry = self._entry(width)
        entry(Tensor(np.array([slot], np.int32)) if isinstance(entry, Entry) else slot)
        return output

    def step(self, texts: Mapping[int, tuple[int, Sequence[int]]], num_scored: int = 1) -> np.ndarray:
        """Continue the texts in slots.

        Args:
            texts: by slot, the position of the first new token, and the T new tokens. Tokens beyond the cache are
                written to its last position, which no text needs: its last token is never read.
            num_scored: L, how many tokens at the end of T get a next token.

        Returns:
            (B, L) tokens or (B, V) logits. Rows of slots that are not in `texts` have no meaning; they write to the
            first position of their cache, which the next prompt overwrites.
        """
        num_tokens = len(next(iter(texts.values()))[1])
        ids, positions = np.zeros((2, self.count, num_tokens), np.int32)
        for slot, (first, tokens) in texts.items():
            ids[slot] = tokens
            positions[slot] = np.minimum(np.arange(first, first + num_tokens), self.cache_len - 1)
        columns = np.tile(np.arange(num_tokens - num_scored, num_tokens, dtype=np.int32), (self.count, 1))
        return self._run("slots", self.count, self.cache_len, ids, positions, columns)

    def _run(self, name: str, count: int, cache_len: int, *inputs: np.ndarray) -> np.ndarray:
        """Return the tokens (count, L), or logits (count, V), of a decoder.

        Raises:
            UserError: logits that are not finite, also in rows that nobody reads, since their tokens are real.
        """
        self.num_passes += 1
        decoder = self._decoder(name, count, cache_len)
        if isinstance(decoder, FusedDecoder):
            output = decoder.likeliest(*inputs) if self._is_greedy else decoder.logits(*inputs)
        else:
            ids, positions, columns = inputs if self._is_greedy else (*inputs[:2], inputs[2][:, 0])
            output = self._graph(decoder)(Tensor(ids), Tensor(positions), Tensor(columns)).asnumpy()
        if output.min() == NOT_FINITE if self._is_greedy else not np.isfinite(output).all():
            raise UserError(
                "the model's logits are not finite: its weights are damaged, or "
                f"hardware.precision={self.hardware.precision} overflows; try hardware.precision=fp32."
            )
        return output if self._is_greedy else output[:, : self.model.vocab_size]

    def _decoder(self, name: str, count: int, cache_len: int) -> Decoder | FusedDecoder:
        key = (name, count, cache_len)
        if key not in self._decoders:
            if self._weights is None:
                self._decoders[key] = Decoder(self.net, count, cache_len, f"cache.{name}")
            else:
                self._decoders[key] = FusedDecoder(self.model, self._weights, count, cache_len)
        return self._decoders[key]

    def _choose_types(self, kind: str, cache: str) -> None:
        """Choose the types of weights and cache; different ones than before discard caches and graphs."""
        if not is_fused(self.net):
            for key, value in (("weights", kind), ("cache", cache)):
                require(
                    value == "fp32",
                    f"generation.{key}={value} is read only by {KERNELS}; use generation.{key}=fp32.",
                )
        elif self._weights is None or (self._weights.kind, self._weights.cache) != (kind, cache):
            for graphs in (self._decoders, self._likeliest, self._entries, self._compiled):
                graphs.clear()
            self._weights = Weights(self.net, kind, cache)

    def _graph(self, decoder: Decoder) -> Graph:
        """Return the graph to run for a decoder."""
        if not self._is_greedy:
            return decoder
        if decoder not in self._likeliest:
            self._likeliest[decoder] = Likeliest(decoder)
        return self._likeliest[decoder]

    def _entry(self, width: int) -> Entry | FusedEntry:
        key = (self.count, self.cache_len, width)
        if key not in self._entries:
            prompt, slots = self._decoder("prompt", 1, width), self._decoder("slots", self.count, self.cache_len)
            if isinstance(prompt, FusedDecoder) and isinstance(slots, FusedDecoder):
                self._entries[key] = FusedEntry(prompt, slots, width, self.cache_len)
            elif isinstance(prompt, Decoder) and isinstance(slots, Decoder):
                self._entries[key] = Entry(prompt, slots, width)
        return self._entries[key]

    def _compile(self, decoder: Decoder | FusedDecoder, count: int, num_tokens: int, num_scored: int) -> None:
        """Compile a decoder's graph for inputs of a shape; kernels need none."""
        if isinstance(decoder, FusedDecoder):
            return
        tokens = Tensor(np.zeros((count, num_tokens), np.int32))
        columns = Tensor(np.zeros((count, num_scored) if self._is_greedy else count, np.int32))
        self._compile_graph(self._graph(decoder), tokens, tokens, columns)

    def _compile_graph(self, cell: Graph, *inputs: Tensor) -> None:
        key = (id(cell), *(size for tensor in inputs for size in tensor.shape))
        if key not in self._compiled:
            compile_graph(cell, *inputs)
            self._compiled.add(key)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens at the beginning of two texts are the same."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
