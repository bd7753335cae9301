"""What `evaluate.py` measures of a language model: its perplexity under named protocols."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from rich.progress import Progress

from gpt2x.config import EvaluateConfig, EvaluationConfig, ModelConfig
from gpt2x.data.mindrecord import Split
from gpt2x.data.reading.files import hash_files
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.evaluate.bootstrap import Intervals, flat
from gpt2x.evaluate.protocols import Result, Track, reference, strided, word
from gpt2x.evaluate.scoring import Scorer
from gpt2x.evaluate.text import TokenStream, Window, open_texts
from gpt2x.parallel.replica_batches import ALONE, ReplicaBatches
from gpt2x.pretrained import Pretrained
from gpt2x.runtime.console import console, format_interval

Texts = Mapping[str, TokenStream | Split]  # by protocol


class PerplexityMeasurement:
    """The protocols of `config.evaluation`, each with its text.

    Attributes:
        evaluation: without nulls.
        data_sha256: of each protocol's text.
        data_hash: of all of them.
        extent: what the results are over, for a title.
        notes: what a user should know before reading the numbers.

    Raises:
        UserError: lengths that do not fit the model, no text, or too short a one.
    """

    def __init__(self, config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer):
        self.evaluation = resolve(config.evaluation, model)
        self.texts = open_texts(config.dataset, self.evaluation, tokenizer, Path(config.paths.cache).expanduser())
        check_texts(self.texts, self.evaluation)
        self.data_sha256 = {protocol: content_hash(text) for protocol, text in self.texts.items()}
        self.data_hash = "+".join(dict.fromkeys(self.data_sha256.values()))
        self.extent = f"seq_len {self.evaluation.seq_len}, stride {self.evaluation.stride}"

    @property
    def notes(self) -> Iterator[str]:
        """What a user should know of the texts."""
        return notes(self.texts, self.evaluation)

    def run(self, pretrained: Pretrained, replicas: ReplicaBatches) -> dict[str, Result]:
        """By protocol."""
        return {result.protocol: result for result in evaluate(pretrained, self.texts, self.evaluation, replicas)}

    def report(self, found: Mapping[str, Result], intervals: Mapping[str, Intervals]) -> dict[str, object]:
        """The part of `results.json`."""
        hidden = ("protocol", "scores")
        return {
            protocol: flat({k: v for k, v in asdict(result).items() if k not in hidden}, intervals[protocol])
            for protocol, result in found.items()
        }

    def save(self, folder: Path, prefix: str, title: str, found: Mapping[str, Result]) -> list[Path]:
        """No files."""
        return []

    def show(self, title: str, found: Mapping[str, Result], intervals: Mapping[str, Intervals]) -> None:
        """One row a protocol, with what its loss is a mean over."""
        columns = ("protocol", "loss", "PPL", "95 % interval", "mean over", "windows")
        rows = [
            (
                protocol, result.loss, result.ppl, format_interval(intervals[protocol].get("ppl")),
                f"{result.num_units:,} {result.unit}s".replace("original ", ""), result.num_windows,
            )
            for protocol, result in found.items()
        ]  # fmt: skip
        console.table(title, columns, rows)


def evaluate(
    pretrained: Pretrained, texts: Texts, evaluation: EvaluationConfig, replicas: ReplicaBatches = ALONE
) -> list[Result]:
    """The results in the order of `evaluation.protocols`; its seq_len and stride are set (`resolve`)."""
    scorer = Scorer(pretrained.net, evaluation.batch_size)
    length, stride = evaluation.seq_len, evaluation.stride
    results = []
    for protocol, text in texts.items():
        track = progress(protocol)
        if protocol == "reference":
            results.append(reference(scorer, text, length, track, replicas))
        elif protocol == "strided":
            results.append(strided(scorer, text, length, stride, track, replicas))
        else:
            results.append(word(scorer, text, length, stride, pretrained.tokenizer.eos_id, track, replicas))
    return results


def resolve(evaluation: EvaluationConfig, model: ModelConfig) -> EvaluationConfig:
    """`evaluation` with its nulls filled in: seq_len the model's positions, stride half of seq_len."""
    longest = model.max_seq_len
    length = evaluation.seq_len or longest
    if not 2 <= length <= longest:
        raise UserError(
            f"evaluation.seq_len={length} does not fit the model, which has {longest} positions: "
            f"use evaluation.seq_len={longest} or less (2 at least), or null"
        )
    stride = evaluation.stride or max(length // 2, 1)
    if stride > length:
        raise UserError(
            f"evaluation.stride={stride} exceeds evaluation.seq_len={length}: tokens between two windows would not be "
            f"counted; use evaluation.stride={length} or less, or null (half of seq_len)"
        )
    return replace(evaluation, seq_len=length, stride=stride)


def check_texts(texts: Texts, evaluation: EvaluationConfig) -> None:
    """Refuse a text that is too short for one of the protocols, before any of them runs."""
    for protocol, text in texts.items():
        least = evaluation.seq_len if protocol == "reference" else 2
        if isinstance(text, TokenStream) and text.num_tokens < least:
            raise UserError(
                f"the {evaluation.split} text has {text.num_tokens} tokens, fewer than the {least} that "
                f"evaluation.protocols={protocol} needs at least (evaluation.seq_len={evaluation.seq_len}): give more "
                "text, a shorter evaluation.seq_len, or evaluation.protocols=[strided,word]"
            )


def notes(texts: Texts, evaluation: EvaluationConfig) -> Iterator[str]:
    """What a user should know of the texts before reading the numbers."""
    for text in dict.fromkeys(texts.values()):
        if isinstance(text, TokenStream):
            used_by = ", ".join(protocol for protocol, other in texts.items() if other is text)
            yield f"text of {used_by}: {text.form}, {text.num_tokens:,} tokens"
            yield from text.notes
    if isinstance(stream := texts.get("reference"), TokenStream) and (tail := stream.num_tokens % evaluation.seq_len):
        yield f"reference drops the last {tail:,} tokens, which fill no block of {evaluation.seq_len:,}"


def content_hash(text: TokenStream | Split) -> str:
    """sha256 of the files that a text is made from."""
    return text.content_hash if isinstance(text, TokenStream) else hash_files(list(text.files))


def progress(protocol: str) -> Track:
    """A bar over the windows of `protocol`; nothing where no bar can be drawn."""

    def track(found: Iterable[Window], total: int) -> Iterable[Window]:
        if not console.is_interactive:
            yield from found
            return
        with Progress(console=console.rich, transient=True) as bar:
            yield from bar.track(found, total=total, description=protocol)

    return track
