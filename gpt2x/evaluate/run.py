"""`evaluate.py`: the perplexity of trained weights under named protocols."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from gpt2x.checkpoint import require_writable
from gpt2x.cli import output_dir, save_config
from gpt2x.config import DatasetConfig, EvaluateConfig, EvaluationConfig, ModelConfig
from gpt2x.data.mindrecord import find_records
from gpt2x.data.prepare import prepare
from gpt2x.errors import UserError
from gpt2x.evaluate.protocols import Result, Track, reference, strided, word
from gpt2x.evaluate.scoring import Scorer
from gpt2x.evaluate.text import TokenStream, Window
from gpt2x.pretrained import Pretrained, load_pretrained
from gpt2x.runtime.console import console
from gpt2x.runtime.device import set_up_device
from gpt2x.tracking import MetricsLog, RunInfo, create_tracker, run_tags
from gpt2x.tracking.provenance import package_versions


def run(config: EvaluateConfig) -> None:
    """Evaluate as `config` says: a table, `results.json`, and the tracker.

    Raises:
        UserError: for anything the user can put right, before anything is evaluated.
    """
    run_dir = output_dir()
    target = Path(config.output).expanduser() if config.output else run_dir / "results.json"
    check_output(target)
    set_up_device(config.hardware)
    pretrained = load_pretrained(str(config.load), config.hardware, config.tokenizer)
    evaluation = fitting(config.evaluation, pretrained.model)
    cache = Path(config.paths.cache).expanduser()
    sources = open_sources(config.dataset, evaluation, pretrained, cache)
    tracker = create_tracker(config.tracker, Path(config.paths.outputs).expanduser())

    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / "config.yaml")
    data_hash = fingerprint(sources, pretrained)
    name = Path(str(config.load)).resolve().name
    tags = run_tags(layout=config.parallel.name, hardware=config.hardware.name, data_hash=data_hash)
    run_name = config.tracker.run_name or f"{name}/{config.dataset.name}"
    tracker.start(RunInfo(config.tracker.experiment or "evaluate", run_name, run_dir, asdict(config), tags))
    status = "FAILED"
    try:
        tracker.log_artifact(run_dir / "config.yaml")
        results = evaluate(pretrained, evaluation, sources)
        step = checkpoint_step(pretrained)
        metrics = {f"eval/{r.protocol}/{key}": getattr(r, key) for r in results for key in ("loss", "ppl")}
        tracker.log_metrics(step, MetricsLog(run_dir / "metrics.jsonl").append(step, metrics), metrics)
        write_json(target, report(config, evaluation, pretrained, data_hash, results))
        tracker.log_artifact(target)
        print_table(f"{name} on {config.dataset.name}, {evaluation.split}", results)
        console.notice(f"results: {target}")
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


Source = Any  # TokenStream, or the Split of MindRecord files (protocol reference alone)


def open_sources(
    dataset: DatasetConfig, evaluation: EvaluationConfig, pretrained: Pretrained, cache: Path
) -> dict[str, Source]:
    """The text of each protocol, read and counted.

    WikiText-2 has the reference's cleaned text under `reference` and the whole of its text (`clean`) under the other
    two, whatever `dataset.protocol` says: the published numbers belong to these texts.
    """
    if find_records(dataset, (evaluation.split,)):
        if evaluation.protocols != ["reference"]:
            raise UserError(
                "MindRecord files hold blocks, not text, which evaluation.protocols=strided and word need: use "
                "evaluation.protocols=[reference], or give the text itself"
            )
        data = prepare(dataset, asdict_tokenizer(pretrained), seq_len=seq_len_of(evaluation), cache=cache,
                       own_tokenizer=pretrained.tokenizer, splits=(evaluation.split,),
                       block_len=evaluation.seq_len)  # fmt: skip
        return {"reference": getattr(data, evaluation.split)}
    return {}
