"""Prompts in, completions out: batches, graphs, and the loop over tokens (floor 3).

Legend: B batch, T tokens, V vocab.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from mindspore import Tensor

from gpt2x.config import GenerationConfig, HardwareConfig, ModelConfig
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.generate import sampling
from gpt2x.generate.decoder import Decoder
from gpt2x.generate.replicas import ALONE, Replicas
from gpt2x.generate.streaming import TextStream
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.agreement import FromFirst
from gpt2x.parallel.collectives import Group

LEAST_BUCKET = 32  # tokens; shorter texts share one graph
LOOKAHEAD = 8  # batches whose prompts are sorted by length together: what is done waits for that many at most


@dataclass(frozen=True)
class Completion:
    """What a prompt became.

    Attributes:
        prompt: as it was given.
        completion: the text of the new tokens, without the EOS that ended it.
        ids: the new tokens, with that EOS.
        num_tokens: how many they are.
        tokens_per_s: num_tokens over the seconds from the start of the row's batch, the prompt included, to its own
            last token. Compilation of graphs is left out.
        finish_reason: "eos", or "length" at max_new_tokens.
    """

    prompt: str
    completion: str
    ids: list[int]
    num_tokens: int
    tokens_per_s: float
    finish_reason: str


@dataclass
class Row:
    """A prompt while it is completed."""

    index: int  # among the prompts of the call
    prompt: list[int]
    new: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    seconds: float = 0.0

    @property
    def text(self) -> list[int]:
        """All ids so far."""
        return self.prompt + self.new


def bucket(length: int, max_seq_len: int) -> int:
    """The next power of two, LEAST_BUCKET at least and max_seq_len at most: each bucket is one graph."""
    return min(max(LEAST_BUCKET, 1 << (length - 1).bit_length()), max_seq_len)


def batches(rows: Sequence[Row], batch_size: int) -> list[list[Row]]:
    """Rows of like length together, so that the first row that is not done is always in the next batch.

    Lengths are sorted within LOOKAHEAD batches of consecutive rows; of these, the batch of the earliest row goes first.
    """
    found: list[list[Row]] = []
    for start in range(0, len(rows), max(1, LOOKAHEAD * batch_size)):
        window = sorted(rows[start : start + LOOKAHEAD * batch_size], key=lambda row: len(row.prompt), reverse=True)
        alike = [window[place : place + batch_size] for place in range(0, len(window), batch_size)]
        found += sorted(alike, key=lambda batch: min(row.index for row in batch))
    return found


class Generator:
    """Completes prompts with the parameters that `net` has at the time of the call.

    Graphs are compiled when a shape (batch, cache, prompt; lengths in powers of two) is first met, and kept.

    Args:
        net: the model.
        model: its shape.
        hardware: the device.
        tokenizer: of the texts.
        tensor: the processes that compute `net` together, which make the same calls: the first one chooses tokens.

    Attributes:
        compile_seconds: spent on compilation so far.
        decode_seconds: spent on decoding so far.
    """

    def __init__(
        self,
        net: GPT2,
        model: ModelConfig,
        hardware: HardwareConfig,
        tokenizer: Tokenizer,
        tensor: Group | None = None,
    ):
        self._from_first = FromFirst(tensor)
        self.net, self.model, self.hardware, self.tokenizer = net, model, hardware, tokenizer
        self.compile_seconds = self.decode_seconds = 0.0
        self._decoders: dict[tuple[int, int], Decoder] = {}
        self._compiled: set[tuple[int, int, int]] = set()

    def complete(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        seed: int,
        on_text: Callable[[int, str], None] | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
        replicas: Replicas = ALONE,
    ) -> list[Completion]:
        """Complete texts; an empty one starts from EOS.

        Args:
            prompts: decoded in `batches` of generation.batch_size, or fewer where each replica would not have one.
            config: decoding options.
            seed: of sampling; config.seed is the caller's to choose from.
            on_text: gets (index of the prompt, text) as text comes, whole characters only; of another replica's
                prompt all of it at once.
            on_completion: gets (index of the prompt, completion) as each is done. `streaming.InputOrder` puts both
                into the order of the prompts.
            replicas: share the batches; each makes this call, and returns what all have completed.

        Returns:
            Completions in the order of the prompts.

        Raises:
            UserError: a prompt that does not fit the window, an EOS outside the vocabulary, logits not finite.
        """
        streams = [TextStream(self.tokenizer) for _ in prompts]
        texts = [""] * len(prompts)
        completions: dict[int, Completion] = {}

        def say(index: int, piece: str) -> None:
            texts[index] += piece
            if piece and on_text:
                on_text(index, piece)

        def end(index: int, completion: Completion) -> None:
            completions[index] = completion
            if on_completion:
                on_completion(index, completion)

        def on_token(row: Row) -> None:
            index, ended = row.index, row.finish_reason is not None
            piece = "" if row.finish_reason == "eos" else streams[index].push(row.new[-1])
            say(index, piece + (streams[index].end() if ended else ""))
            if ended:
                num_tokens = len(row.new)
                speed = num_tokens / row.seconds
                end(index, Completion(prompts[index], texts[index], row.new, num_tokens, speed, row.finish_reason))

        def on_round(rows: list[Row]) -> None:
            for others in replicas.exchange([(row.index, asdict(completions[row.index])) for row in rows]):
                for index, values in others:
                    completion = Completion(**values)
                    say(index, completion.completion)
                    end(index, completion)

        self._decode(self.encode(prompts), config, seed, on_token, on_round, replicas)
        return [completions[index] for index in range(len(prompts))]

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        seed: int,
        on_token: Callable[[Row], None] = lambda row: None,
    ) -> list[list[int]]:
        """`complete` on tokens: the new ids of each prompt, the EOS that ended it included.

        `on_token` sees a row after each of its tokens, and ends it by giving it a `finish_reason`.
        """
        return [row.new for row in self._decode(prompts, config, seed, on_token)]

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt.

        Raises:
            UserError: text that is no Unicode.
        """
        for number, prompt in enumerate(prompts, 1):
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError as error:  # bytes of the command line that were not UTF-8
                raise UserError(f"prompt {number} ({excerpt(prompt)}) is not valid UTF-8: {error.reason}") from None
        return [ids or [self.tokenizer.eos_id] for ids in self.tokenizer.encode_batch(prompts)]

    def check(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
        """Refuse what cannot be decoded, before any work.

        Raises:
            UserError: naming the prompt by its number, from 1.
        """
        window, size = self.model.max_seq_len, self.model.vocab_size
        for token in self.eos_ids(config):
            if not 0 <= token < size:
                raise UserError(f"generation.eos_ids: {token} is no token of the model (model.vocab_size={size})")
        for number, ids in enumerate(prompts, 1):
            if not ids:
                raise UserError(f"prompt {number} has no token: start it with EOS ({self.tokenizer.eos_id})")
            if not 0 <= min(ids) <= max(ids) < size:
                raise UserError(f"prompt {number} has a token outside the vocabulary (model.vocab_size={size})")
            if len(ids) + config.max_new_tokens > window:
                room = window - len(ids)
                fix = f"use generation.max_new_tokens={room} or less, or shorten the prompt"
                if room < 1:
                    fix = f"shorten the prompt to {max(1, window - config.max_new_tokens)} tokens or fewer"
                raise UserError(
                    f"prompt {number} ({excerpt(self.tokenizer.decode(ids))}) has {len(ids)} tokens: with "
                    f"generation.max_new_tokens={config.max_new_tokens} it exceeds model.max_seq_len={window}; {fix}"
                )

    def eos_ids(self, config: GenerationConfig) -> list[int]:
        """The tokens that end a completion."""
        return [self.tokenizer.eos_id] if config.eos_ids is None else list(config.eos_ids)

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        seed: int,
        on_token: Callable[[Row], None],
        on_round: Callable[[list[Row]], None] = lambda rows: None,
        replicas: Replicas = ALONE,
    ) -> list[Row]:
        """Complete this replica's prompts: `on_token` sees a row after each of its tokens, `on_round` a whole batch."""
        self.check(prompts, config)
        rows = [Row(index, list(ids)) for index, ids in enumerate(prompts)]
        # of the last batch too: another size is another graph
        batch_size = min(config.batch_size, -(-len(rows) // replicas.count))
        for batch in replicas.rounds(batches(rows, batch_size)):
            if batch:
                self._decode_batch(batch, batch_size, config, seed, on_token)
            on_round(batch or [])
        return rows

    def _decode_batch(
        self, rows: list[Row], batch_size: int, config: GenerationConfig, seed: int, on_token: Callable[[Row], None]
    ) -> None:
        longest = max(len(row.prompt) for row in rows)
        width = bucket(longest, self.model.max_seq_len)
        cache_len = bucket(longest + config.max_new_tokens, self.model.max_seq_len)
        decoder = self._decoder(batch_size, cache_len, (width, 1))
        eos_ids = self.eos_ids(config)

        ids = np.zeros((batch_size, width), np.int32)
        positions = np.tile(np.arange(width, dtype=np.int32), (batch_size, 1))
        last = np.zeros(batch_size, np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row.prompt)] = row.prompt
            last[place] = len(row.prompt) - 1
        start = time.perf_counter()
        for step in range(config.max_new_tokens):
            active = [place for place, row in enumerate(rows) if row.finish_reason is None]
            if not active:
                break
            logits = decoder(Tensor(ids), Tensor(positions), Tensor(last)).asnumpy()  # (B, V)
            logits = logits[active, : self.model.vocab_size]
            if not np.isfinite(logits).all():
                raise UserError(
                    "the model's logits are not finite: its weights are damaged, or "
                    f"hardware.precision={self.hardware.precision} overflows; try hardware.precision=fp32"
                )
            forbidden = eos_ids if step < config.min_new_tokens else []
            tokens = self._choose(logits, [rows[place] for place in active], config, seed, step, forbidden)
            # rows that have ended rewrite place 0 of their own cache, which nobody reads
            ids, positions = np.zeros((2, batch_size, 1), np.int32)
            last = np.zeros(batch_size, np.int32)
            for place, token in zip(active, tokens, strict=True):
                row = rows[place]
                ids[place], positions[place] = token, len(row.text)
                row.new.append(token)
                row.seconds = time.perf_counter() - start
                if token in eos_ids:
                    row.finish_reason = "eos"
                elif len(row.new) == config.max_new_tokens:
                    row.finish_reason = "length"
                on_token(row)
        self.decode_seconds += time.perf_counter() - start

    def _choose(
        self, logits: np.ndarray, rows: list[Row], config: GenerationConfig, seed: int, step: int, forbidden: list[int]
    ) -> list[int]:
        """The next token of each row, by the first of the processes that compute the logits together.

        Their logits are the same (the gather adds zeros), but numpy's exponentials may differ between kinds of CPU, and
        one token that differs would leave one process waiting for ever when its rows have ended.
        """
        tokens = [0] * len(rows)
        if self._from_first.is_first:
            draws = [sampling.draw(seed, row.index, step) for row in rows]
            tokens = sampling.next_tokens(logits, [row.text for row in rows], draws, config, forbidden)
        return self._from_first(tokens)

    def _decoder(self, batch_size: int, cache_len: int, widths: tuple[int, ...]) -> Decoder:
        """The decoder of this shape, its graphs for `widths` new tokens compiled."""
        start = time.perf_counter()
        decoder = self._decoders.get((batch_size, cache_len))
        if decoder is None:
            decoder = Decoder(self.net, self.model, self.hardware, batch_size, cache_len)
            self._decoders[batch_size, cache_len] = decoder
            self._from_first([0] * batch_size)  # its graph as well
        for width in widths:
            if (batch_size, cache_len, width) not in self._compiled:
                tokens = Tensor(np.zeros((batch_size, width), np.int32))
                decoder.compile(tokens, tokens, Tensor(np.zeros(batch_size, np.int32)))
                self._compiled.add((batch_size, cache_len, width))
        self.compile_seconds += time.perf_counter() - start
        return decoder


def excerpt(text: str, length: int = 40) -> str:
    """The beginning of a text, quoted, for a message."""
    return repr(text if len(text) <= length else text[:length] + "…")
