"""`evaluate.py`: the perplexity of trained weights under named protocols."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from gpt2x import __version__
from gpt2x.cli import output_dir, save_config
from gpt2x.config import EvaluateConfig, EvaluationConfig, ModelConfig
from gpt2x.convert import GPT2XSource
from gpt2x.data.files import hash_files
from gpt2x.data.mindrecord import Split
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.evaluate.protocols import Result, Track, reference, strided, word
from gpt2x.evaluate.scoring import Scorer
from gpt2x.evaluate.text import TokenStream, Window, open_texts
from gpt2x.evaluate.turns import ALONE, Turns
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import Pretrained, load_pretrained, open_pretrained
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.device import set_up_device
from gpt2x.tracking import MetricsLog, NoTracker, RunInfo, create_tracker, run_tags
from gpt2x.tracking.provenance import package_versions

Texts = Mapping[str, TokenStream | Split]  # by protocol


def run(config: EvaluateConfig) -> None:
    """Evaluate as `config` says: a table, `results.json`, and the tracker.

    Raises:
        UserError: for anything the user can put right, before anything is evaluated.
    """
    run_dir, target = places(config)
    outputs = Path(config.paths.outputs).expanduser()
    tracker = NoTracker() if launch.worker_rank() else create_tracker(config.tracker, outputs)
    set_up_device(config.hardware)
    mesh = Mesh(config.parallel, config.hardware.device_target)
    pretrained = load_pretrained(str(config.load), config.hardware, config.tokenizer, mesh)
    evaluation, texts = read_texts(config, pretrained.model, pretrained.tokenizer)
    step = trained_steps(pretrained)

    if launch.is_deciding():
        save_config(config, run_dir / "config.yaml")
    name = display_name(pretrained)
    hashes = {protocol: content_hash(text) for protocol, text in texts.items()}
    data_hash = "+".join(dict.fromkeys(hashes.values()))
    require_same(mesh, f"the content of dataset={config.dataset.name}", data_hash)
    tracker.start(
        RunInfo(
            experiment=config.tracker.experiment or "evaluate",
            run_name=config.tracker.run_name or f"{name}/{config.dataset.name}",
            run_dir=run_dir,
            params=asdict(config),
            tags=run_tags(layout=config.parallel.name, hardware=config.hardware.name, data_hash=data_hash),
        )
    )
    status = "FAILED"
    try:
        tracker.log_artifact(run_dir / "config.yaml")
        for note in notes(texts, evaluation):
            console.notice(note)
        results = evaluate(pretrained, texts, evaluation, Turns(mesh))
        if mesh.is_main:
            metrics = {f"eval/{r.protocol}/{key}": float(getattr(r, key)) for r in results for key in ("loss", "ppl")}
            time_s = MetricsLog(run_dir / "metrics.jsonl").append(step or 0, metrics)
            tracker.log_metrics(step or 0, time_s, metrics)
            write_json(target, report(config, evaluation, pretrained, step, hashes, results))
            tracker.log_artifact(target)
        lengths = f"seq_len {evaluation.seq_len}, stride {evaluation.stride}"
        print_table(f"{name} on {config.dataset.name} ({evaluation.split}), {lengths}", results)
        console.notice(f"results: {target}")
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def prepare_launch(config: EvaluateConfig) -> Path:
    """Check, once, all that the processes of a layout would: a run directory, with `config.yaml` for them.

    What is downloaded or prepared is in the cache then.

    Raises:
        UserError: for anything the user can put right.
    """
    create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    run_dir, _ = places(config)
    source, tokenizer, _ = open_pretrained(str(config.load), config.tokenizer, config.parallel)
    read_texts(config, source.model, tokenizer)
    save_config(config, run_dir / "config.yaml")
    return run_dir


def read_texts(config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer) -> tuple[EvaluationConfig, Texts]:
    """The evaluation without nulls, and the text of each protocol.

    Raises:
        UserError: lengths that do not fit the model, no text, or too short a one.
    """
    evaluation = resolve(config.evaluation, model)
    texts = open_texts(config.dataset, evaluation, tokenizer, Path(config.paths.cache).expanduser())
    check_texts(texts, evaluation)
    return evaluation, texts


def places(config: EvaluateConfig) -> tuple[Path, Path]:
    """The run directory, and the file of the results.

    Raises:
        UserError: the file cannot be written.
    """
    run_dir = output_dir()
    target = Path(config.output).expanduser() if config.output else run_dir / "results.json"
    if launch.worker_rank() == 0:
        check_target(target)
    return run_dir, target


def trained_steps(pretrained: Pretrained) -> int | None:
    """The step of a gpt2x checkpoint; a converted one has none."""
    source = pretrained.source
    return source.checkpoint.loop_state.get("step") if isinstance(source, GPT2XSource) else None


def display_name(pretrained: Pretrained) -> str:
    """`MODEL RUN step_N` of a run's checkpoint, `MODEL DIRECTORY` of another directory."""
    path = pretrained.source.path.absolute()
    is_of_run = pretrained.source.kind == "gpt2x" and path.parent.name == "checkpoints"
    place = f"{path.parents[1].name} {path.name}" if is_of_run else path.name
    return f"{pretrained.model.name} {place}"


def evaluate(pretrained: Pretrained, texts: Texts, evaluation: EvaluationConfig, turns: Turns = ALONE) -> list[Result]:
    """The results in the order of `evaluation.protocols`; its seq_len and stride are set (`resolve`)."""
    scorer = Scorer(pretrained.net, evaluation.batch_size)
    length, stride = evaluation.seq_len, evaluation.stride
    results = []
    for protocol, text in texts.items():
        track = progress(protocol)
        if protocol == "reference":
            results.append(reference(scorer, text, length, track, turns))
        elif protocol == "strided":
            results.append(strided(scorer, text, length, stride, track, turns))
        else:
            results.append(word(scorer, text, length, stride, pretrained.tokenizer.eos_id, track, turns))
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


def check_target(target: Path) -> None:
    """Refuse a results file that could not be written at the end."""
    if target.is_dir():
        raise UserError(f"output={target} is a directory: give a file, such as output={target / 'results.json'}")
    probe = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output={target} cannot be written ({error.strerror}): give another file") from error


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


def report(
    config: EvaluateConfig, evaluation: EvaluationConfig, pretrained: Pretrained, step: int | None,
    hashes: Mapping[str, str], results: list[Result],
) -> dict[str, object]:  # fmt: skip
    """`results.json`: the results and all that is needed to get them again."""
    return {
        "results": {r.protocol: {k: v for k, v in asdict(r).items() if k != "protocol"} for r in results},
        "load": {"path": str(pretrained.source.path.absolute()), "kind": pretrained.source.kind, "step": step},
        "model": asdict(pretrained.model),
        "dataset": asdict(config.dataset),
        "data_sha256": dict(hashes),
        "tokenizer_fingerprint": pretrained.tokenizer.fingerprint,
        "evaluation": asdict(evaluation),
        "hardware": {"name": config.hardware.name, "precision": config.hardware.precision},
        "parallel": config.parallel.name,
        "versions": {"gpt2x": __version__} | package_versions(),
    }


def write_json(target: Path, content: object, default: Callable[[Any], object] | None = None) -> None:
    """Replace `target` in one go; `default` stands in for what JSON has no form for."""
    part = target.with_name(f".{target.name}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=default) + "\n", encoding="utf-8")
    os.replace(part, target)


def print_table(title: str, results: list[Result]) -> None:
    """One row a protocol, with what its loss is a mean over."""
    rows = [(r.protocol, r.loss, r.ppl, f"{r.num_units:,} {r.unit}s", r.num_tokens, r.num_windows) for r in results]
    console.table(title, ("protocol", "loss", "PPL", "mean over", "tokens", "windows"), rows)
