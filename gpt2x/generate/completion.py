"""Prompts in, completions out: slots, and the loop over tokens.

Legend: B batch, V vocab.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np

from gpt2x.config import GenerationConfig, HardwareConfig, ModelConfig
from gpt2x.config.rules import validate_draft
from gpt2x.convert.special_ids import BOS, SpecialIds
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.generate import sampling
from gpt2x.generate.replicas import ALONE, Replicas
from gpt2x.generate.slots import Slots
from gpt2x.generate.speculative import draft_by_lookup, draft_by_model, draft_steps, verified
from gpt2x.generate.streaming import TextStream
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.agreement import FromFirst
from gpt2x.parallel.collectives import Group
from gpt2x.pretrained import tokenizer_ids

ROUND_BATCHES = 4  # batches per replica between two exchanges of completions


@dataclass(frozen=True)
class Completion:
    """What the model wrote after a prompt.

    Attributes:
        prompt: as typed, or within its template.
        completion: the text of the new tokens, without the EOS that ended it.
        ids: the new tokens, with that EOS.
        num_tokens: number of new tokens.
        tokens_per_s: num_tokens divided by the seconds from entering a slot to the last token, without compilation.
        finish_reason: "eos", or "length" at max_new_tokens.
        num_drafted: number of tokens that the draft proposed.
        num_accepted: number of them that the model accepted.
    """

    prompt: str
    completion: str
    ids: list[int]
    num_tokens: int
    tokens_per_s: float
    finish_reason: str
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """The share of drafted tokens that the model accepted; None if there was nothing to draft."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None


@dataclass
class Row:
    """A prompt that is being completed."""

    index: int  # among the prompts of the call
    prompt: list[int]
    new: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    start: float = 0.0  # when the prompt entered a slot
    seconds: float = 0.0  # from then to the last token
    num_drafted: int = 0  # drafted tokens, without those after max_new_tokens
    num_accepted: int = 0  # of these, the ones that the model accepted

    @property
    def text(self) -> list[int]:
        """The ids of prompt and completion so far."""
        return self.prompt + self.new


class Drafter(NamedTuple):
    """A smaller model with the same tokens, which drafts."""

    net: GPT2
    model: ModelConfig


def rounds_of(rows: list[Row], batch_size: int, count: int) -> list[list[Row]]:
    """Return the parts of `count` replicas, round after round of ROUND_BATCHES batches; all rows for one replica."""
    if count == 1:
        return [rows] if rows else []
    size = ROUND_BATCHES * batch_size * count
    windows = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [window[index::count] for window in windows for index in range(min(count, len(window)))]


class Generator:
    """Completes prompts with the parameters that `net` has at the time of the call.

    Up to generation.batch_size prompts have a slot each in a cache (`gpt2x.generate.slots`). When one ends, the next
    waiting prompt takes its slot (continuous batching: Yu et al., Orca, OSDI 2022).

    Args:
        net: the model.
        model: its shape.
        hardware: the device.
        tokenizer: encodes prompts and decodes completions.
        tensor: the ranks of the tensor axis that compute `net` together and make the same calls; the first one samples.
        draft: drafts config.draft_tokens tokens at a time (`gpt2x.generate.speculative`).
        special_ids: what starts an empty prompt and ends a completion; None for the tokenizer's.

    Attributes:
        start_id: starts an empty prompt: the model's BOS, else the tokenizer's, else EOS.
        end_ids: end a completion, unless config.eos_ids says otherwise: the model's EOS.
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
        draft: Drafter | None = None,
        special_ids: SpecialIds | None = None,
    ):
        self._from_first = FromFirst(tensor)
        ids = special_ids or tokenizer_ids(tokenizer, model)
        self.start_id = next(id for id in (ids.bos, tokenizer.bos_id, tokenizer.eos_id) if id is not None)
        self.end_ids = [token for token in ids.eos if 0 <= token < (model.vocab_size or 0)]  # others never come
        self.net, self.model, self.tokenizer, self.draft = net, model, tokenizer, draft
        self.slots = Slots(net, model, hardware)
        self.draft_slots = Slots(draft.net, draft.model, hardware) if draft else None
        self.compile_seconds = self.decode_seconds = 0.0

    def complete(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        seed: int,
        on_text: Callable[[int, str], None] | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
        replicas: Replicas = ALONE,
    ) -> list[Completion]:
        """Complete texts; an empty one starts from `start_id`.

        Args:
            prompts: decoded in their order, generation.batch_size at the same time, or fewer so that each replica has
                some.
            config: decoding options.
            seed: seed of sampling; config.seed is not read.
            on_text: called with (index of the prompt, text) as text arrives, in whole characters; with the whole text
                of a prompt that a different replica completed.
            on_completion: called with (index of the prompt, completion) as each ends. `streaming.InputOrder` puts both
                into the order of the prompts.
            replicas: share the prompts; each makes this call, and returns the completions of all.

        Returns:
            Completions in the order of the prompts.

        Raises:
            UserError: a prompt that does not fit the window, an EOS outside the vocabulary, logits that are not finite.
        """
        streams: dict[int, TextStream] = {}
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
            index, reason = row.index, row.finish_reason
            if index not in streams:
                streams[index] = TextStream(self.tokenizer, row.prompt)
            piece = "" if reason == "eos" else streams[index].push(row.new[-1])
            say(index, piece + ("" if reason is None else streams[index].end()))
            if reason is not None:
                num_tokens = len(row.new)
                speed = num_tokens / row.seconds
                text, counts = texts[index], (row.num_drafted, row.num_accepted)
                end(index, Completion(prompts[index], text, row.new, num_tokens, speed, reason, *counts))

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
        """Complete prompts of tokens; return the new ids of each, with the EOS that ended it.

        `on_token` is called with a row after each of its tokens; it ends the row by setting its `finish_reason`.
        """
        return [row.new for row in self._decode(prompts, config, seed, on_token)]

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt.

        Raises:
            UserError: text that is not Unicode, or an empty prompt for a model whose BOS is no token.
        """
        for number, prompt in enumerate(prompts, 1):
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError as error:  # bytes of the command line that were not UTF-8
                raise UserError(f"prompt {number} ({excerpt(prompt)}) is not valid UTF-8: {error.reason}.") from None
        encoded = self.tokenizer.encode_batch(prompts)
        size = self.model.vocab_size or 0
        if not all(encoded) and not 0 <= self.start_id < size:
            raise UserError(
                f"prompt {encoded.index([]) + 1} is empty and would start from {BOS}={self.start_id}, which is not a "
                f"token of the model (model.vocab_size={size}). Give a prompt, or correct {BOS} in the model's files."
            )
        return [ids or [self.start_id] for ids in encoded]

    def check(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
        """Reject what cannot be decoded, before any work.

        Raises:
            UserError: naming the prompt by its number, from 1.
        """
        window, size, key = self.model.max_seq_len, self.model.vocab_size, "model.max_seq_len"
        assert size is not None
        if self.draft:
            validate_draft(config)
            if self.draft.model.max_seq_len < window:
                window, key = self.draft.model.max_seq_len, "the draft's max_seq_len"
        for token in self.eos_ids(config):
            if not 0 <= token < size:
                raise UserError(f"generation.eos_ids: {token} is not a token of the model (model.vocab_size={size}).")
        for number, ids in enumerate(prompts, 1):
            if not ids:
                raise UserError(f"prompt {number} has no token; start it with BOS ({self.start_id}).")
            if not 0 <= min(ids) <= max(ids) < size:
                raise UserError(f"prompt {number} has a token outside the vocabulary (model.vocab_size={size}).")
            if len(ids) + config.max_new_tokens > window:
                room = window - len(ids)
                fix = f"use generation.max_new_tokens={room} or less, or shorten the prompt"
                if room < 1:
                    fix = f"shorten the prompt to {max(1, window - config.max_new_tokens)} tokens or fewer"
                raise UserError(
                    f"prompt {number} ({excerpt(self.tokenizer.decode(ids))}) has {len(ids)} tokens: with "
                    f"generation.max_new_tokens={config.max_new_tokens} it exceeds {key}={window}; {fix}."
                )

    def eos_ids(self, config: GenerationConfig) -> list[int]:
        """Return the tokens that end a completion."""
        return self.end_ids if config.eos_ids is None else list(config.eos_ids)

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        seed: int,
        on_token: Callable[[Row], None],
        on_round: Callable[[list[Row]], None] = lambda rows: None,
        replicas: Replicas = ALONE,
    ) -> list[Row]:
        """Complete this replica's prompts: `on_token` gets a row after each of its tokens, `on_round` a whole part."""
        self.check(prompts, config)
        rows = [Row(index, list(ids)) for index, ids in enumerate(prompts)]
        # the same for the last part: a different number of slots would be a new graph
        count = min(config.batch_size, -(-len(rows) // replicas.count))
        for part in replicas.rounds(rounds_of(rows, count, replicas.count)):
            if part:
                self._decode_part(part, count, config, seed, on_token)
            on_round(part or [])
        return rows

    def _decode_part(
        self, rows: list[Row], count: int, config: GenerationConfig, seed: int, on_token: Callable[[Row], None]
    ) -> None:
        """Complete rows in `count` slots; the next row takes the slot of a row that has ended."""
        self._open(rows, count, config)
        eos_ids = self.eos_ids(config)
        waiting, slots = deque(rows), dict[int, Row]()

        def add(row: Row, tokens: Sequence[int]) -> None:
            for token in tokens:
                row.new.append(token)
                row.seconds = time.perf_counter() - row.start
                if token in eos_ids:
                    row.finish_reason = "eos"
                elif len(row.new) == config.max_new_tokens:
                    row.finish_reason = "length"
                on_token(row)
                if row.finish_reason is not None:
                    break

        start = time.perf_counter()
        while waiting or slots:
            for slot in range(count):
                while waiting and slot not in slots:
                    row = waiting.popleft()
                    row.start = time.perf_counter()
                    output = self.slots.enter(slot, row.prompt)
                    if self.draft_slots:
                        self.draft_slots.enter(slot, row.prompt)
                    add(row, self._choose(output, [row], config, seed))
                    if row.finish_reason is None:
                        slots[slot] = row
            if slots:
                for slot, tokens in self._next(slots, config, seed).items():
                    add(slots[slot], tokens)
            slots = {slot: row for slot, row in slots.items() if row.finish_reason is None}
        self.decode_seconds += time.perf_counter() - start

    def _open(self, rows: list[Row], count: int, config: GenerationConfig) -> None:
        """Open slots for rows and compile their graphs."""
        start = time.perf_counter()
        self._from_first([0] * count)  # compiles its graph too
        lengths, is_greedy = [len(row.prompt) for row in rows], sampling.is_plain_greedy(config)
        types = config.weights, config.cache, config.prompt_cache
        steps, drafts = draft_steps(config.draft_tokens) if self._drafts(config) else ([(1, 1)], [])
        self.slots.open(count, lengths, config.max_new_tokens, steps, is_greedy, *types)
        if self.draft_slots:
            self.draft_slots.open(count, lengths, config.max_new_tokens, drafts, is_greedy, *types)
        self.compile_seconds += time.perf_counter() - start

    def _drafts(self, config: GenerationConfig) -> bool:
        """Return True if tokens are drafted, by a model or from the text."""
        return self.draft_slots is not None or config.draft_ngram > 0

    def _next(self, slots: dict[int, Row], config: GenerationConfig, seed: int) -> dict[int, list[int]]:
        """Return the next token of the row in each slot; with drafts, one or several."""
        if not self._drafts(config):
            output = self.slots.step({slot: (len(row.text) - 1, row.text[-1:]) for slot, row in slots.items()})
            tokens = self._choose(output[list(slots)], list(slots.values()), config, seed)
            return {slot: [token] for slot, token in zip(slots, tokens, strict=True)}
        texts = {slot: row.text for slot, row in slots.items()}
        if self.draft_slots is not None:
            drafted = draft_by_model(self.draft_slots, texts, config.draft_tokens)
        else:
            longest, count = config.draft_ngram, config.draft_tokens
            drafted = {slot: draft_by_lookup(text, longest, count) for slot, text in texts.items()}
        accepted = verified(self.slots, texts, drafted)
        for slot, row in slots.items():
            num_drafted = min(config.draft_tokens, config.max_new_tokens - len(row.new))
            num_accepted = min(num_drafted, len(accepted[slot]) - 1)
            row.num_drafted, row.num_accepted = row.num_drafted + num_drafted, row.num_accepted + num_accepted
        return accepted

    def _choose(self, output: np.ndarray, rows: list[Row], config: GenerationConfig, seed: int) -> list[int]:
        """Return the next token of each row: output (B, 1) itself, or drawn by the first process from output (B, V).

        All processes of a tensor group have the same logits (the gather adds zeros), and so the same most likely token.
        But numpy's exponentials may differ between kinds of CPU. After one different token, the processes would end
        their rows at different steps, and one would wait forever.
        """
        if sampling.is_plain_greedy(config):
            return output[:, 0].tolist()
        tokens = [0] * len(rows)
        if self._from_first.is_first:
            for index, row in enumerate(rows):
                number = sampling.draw(seed, row.index, len(row.new))
                forbidden = self.eos_ids(config) if len(row.new) < config.min_new_tokens else []
                (tokens[index],) = sampling.next_tokens(output[index, None], [row.text], [number], config, forbidden)
        return self._from_first(tokens)


def excerpt(text: str, length: int = 40) -> str:
    """Return the beginning of a text, quoted, for a message."""
    return repr(text if len(text) <= length else text[:length] + "…")
