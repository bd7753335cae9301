"""What `evaluate.py` measures of a language model: its perplexity under named protocols (docs/evaluation.md)."""

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
from gpt2x.tracking import DataInput, data_source

UNITS = {"batch": "batches", "original word": "words"}  # in the plural, for the table
Texts = Mapping[str, TokenStream | Split]  # by protocol


class PerplexityMeasurement:
    """The protocols of `config.evaluation`, each with its text.

    Attributes:
        evaluation: nulls replaced by what they stand for.
        data_sha256: hash of the text, by protocol.
        data_hash: hashes of all texts.
        extent: what the results cover, for a title.
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
        self.dataset = config.dataset
        self.extent = f"seq_len {self.evaluation.seq_len}, stride {self.evaluation.stride}"

    @property
    def notes(self) -> Iterator[str]:
        """What a user should know about the texts."""
        return notes(self.texts, self.evaluation)

    @property
    def inputs(self) -> list[DataInput]:
        """Each text once."""
        source = data_source(self.dataset, self.evaluation.split)
        return [
            DataInput(
                getattr(text, "form", self.dataset.name), digest, "evaluation", source,
                num_rows=text.num_blocks if isinstance(text, Split) else None, num_tokens=text.num_tokens,
            )
            for digest, text in {self.data_sha256[protocol]: text for protocol, text in self.texts.items()}.items()
        ]  # fmt: skip

    def run(self, pretrained: Pretrained, replicas: ReplicaBatches) -> dict[str, Result]:
        """Return the results by protocol."""
        return {result.protocol: result for result in evaluate(pretrained, self.texts, self.evaluation, replicas)}

    def report(self, measured: Mapping[str, Result], intervals: Mapping[str, Intervals]) -> dict[str, object]:
        """Return the entries for `results.json`."""
        hidden = ("protocol", "scores")
        return {
            protocol: flat({k: v for k, v in asdict(result).items() if k not in hidden}, intervals[protocol])
            for protocol, result in measured.items()
        }

    def save(self, folder: Path, prefix: str, title: str, measured: Mapping[str, Result]) -> list[Path]:
        """Write no files."""
        return []

    def show(self, title: str, measured: Mapping[str, Result], intervals: Mapping[str, Intervals]) -> None:
        """Print one row per protocol: what its loss is a mean over, and beside it the perplexity per token."""
        columns = ("protocol", "loss", "PPL", "95 % interval", "mean over", "token PPL")
        rows = [
            (
                protocol, result.loss, result.ppl, format_interval(intervals[protocol].get("ppl")),
                f"{result.num_units:,} {UNITS.get(result.unit, result.unit + 's')}", result.token_ppl,
            )
            for protocol, result in measured.items()
        ]  # fmt: skip
        console.table(title, columns, rows)
        for protocol, result in measured.items():
            bits = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f} bits per byte, "
            console.notice(f"{protocol}: {bits}{result.num_tokens:,} tokens in {result.num_windows:,} windows")


def evaluate(
    pretrained: Pretrained, texts: Texts, evaluation: EvaluationConfig, replicas: ReplicaBatches = ALONE
) -> list[Result]:
    """Return the results in the order of `evaluation.protocols`, whose seq_len and stride `resolve` has set."""
    scorer = Scorer(pretrained.net, evaluation.batch_size)
    length, stride = evaluation.seq_len, evaluation.stride
    token_bytes = pretrained.tokenizer.token_bytes()
    results = []
    for protocol, text in texts.items():
        track = progress(protocol)
        if protocol == "reference":
            results.append(reference(scorer, text, length, track, replicas, token_bytes))
        elif protocol == "strided":
            results.append(strided(scorer, text, length, stride, track, replicas, token_bytes))
        else:
            prefix_id = pretrained.prefix_id
            results.append(word(scorer, text, length, stride, prefix_id, track, replicas, token_bytes))
    return results


def resolve(evaluation: EvaluationConfig, model: ModelConfig) -> EvaluationConfig:
    """Return `evaluation` without nulls: seq_len is the model's number of positions, stride half of seq_len.

    Raises:
        UserError: a seq_len that the model does not have, or a stride beyond it.
    """
    longest = model.max_seq_len
    length = evaluation.seq_len or longest
    if not 2 <= length <= longest:
        raise UserError(
            f"evaluation.seq_len={length} does not fit the model, which has {longest} positions; "
            f"use evaluation.seq_len={longest} or less (at least 2), or null."
        )
    stride = evaluation.stride or max(length // 2, 1)
    if stride > length:
        raise UserError(
            f"evaluation.stride={stride} exceeds evaluation.seq_len={length}: tokens between two windows would not be "
            f"counted; use evaluation.stride={length} or less, or null (half of seq_len)."
        )
    return replace(evaluation, seq_len=length, stride=stride)


def check_texts(texts: Texts, evaluation: EvaluationConfig) -> None:
    """Raise UserError if a text is too short for one of the protocols, before any of them runs."""
    for protocol, text in texts.items():
        least = evaluation.seq_len if protocol == "reference" else 2
        if isinstance(text, TokenStream) and text.num_tokens < least:
            raise UserError(
                f"the {evaluation.split} text has {text.num_tokens} tokens, fewer than the {least} that "
                f"evaluation.protocols={protocol} needs (evaluation.seq_len={evaluation.seq_len}); give more "
                "text, a shorter evaluation.seq_len, or evaluation.protocols=[strided,word]."
            )


def notes(texts: Texts, evaluation: EvaluationConfig) -> Iterator[str]:
    """Yield what a user should know about the texts before reading the numbers."""
    for text in dict.fromkeys(texts.values()):
        if isinstance(text, TokenStream):
            used_by = ", ".join(protocol for protocol, other in texts.items() if other is text)
            yield f"text of {used_by}: {text.form}, {text.num_tokens:,} tokens"
            yield from text.notes
    if isinstance(rows := texts.get("reference"), Split):
        yield f"rows of {rows.block_len:,} tokens, of which {rows.block_len - 1:,} are scored (all but the first)"
    if "reference" in texts:
        size = evaluation.batch_size
        yield f"reference is the mean over batches of {size} windows, as MindFormers computes it; token PPL over tokens"
    if isinstance(stream := texts.get("reference"), TokenStream) and (tail := stream.num_tokens % evaluation.seq_len):
        yield f"reference drops the last {tail:,} tokens, which fill no block of {evaluation.seq_len:,}"


def content_hash(text: TokenStream | Split) -> str:
    """Return the sha256 of the files that a text is read from."""
    return text.content_hash if isinstance(text, TokenStream) else hash_files(list(text.files))


def progress(protocol: str) -> Track:
    """Return what shows a bar over the windows of `protocol`, if the terminal can draw one."""

    def track(windows: Iterable[Window], total: int) -> Iterable[Window]:
        if not console.is_interactive:
            yield from windows
            return
        with Progress(console=console.rich, transient=True) as bar:
            yield from bar.track(windows, total=total, description=protocol)

    return track
