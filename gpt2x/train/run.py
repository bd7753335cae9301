"""`train.py`: from a validated configuration to a finished run directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from gpt2x import checkpoint
from gpt2x.checks import validate_warmup
from gpt2x.cli import known_models, output_dir, save_config
from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.convert import Source, check_model_matches, check_weights, load_source
from gpt2x.data.prepare import PreparedData, prepare
from gpt2x.data.sampling import num_batches
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.unigram import unigram_perplexity
from gpt2x.errors import UserError
from gpt2x.model import stats
from gpt2x.pretrained import check_vocabulary, source_tokenizer
from gpt2x.runtime.console import console
from gpt2x.runtime.device import measure_peak_tflops, set_up_device
from gpt2x.runtime.memory import machine_memory_gb
from gpt2x.tracking import RunInfo, Tracker, create_tracker, run_tags
from gpt2x.train.resume import Resumption, find_resumption
from gpt2x.train.samples import sample_generation

UNIGRAM_MAX_TOKENS = 50_000_000  # counting more would delay the start


def run(config: TrainConfig) -> None:
    """Train as `config` says.

    Raises:
        UserError: for anything the user can put right, before the run directory holds anything.
    """
    run_dir = output_dir()
    checkpoint.require_writable(Path(config.paths.outputs).expanduser())
    resumption = find_resumption(config, run_dir) if config.resume else None
    source = load_source(config.load) if config.load and not resumption else None
    tracker = create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    data = prepare_data(config, source, resumption)
    model = resolve_model(config, data.tokenizer, source, resumption)
    total_steps = check_steps(config, data, resumption)
    set_up_device(config.hardware)
    sample_generation(config, model, data.tokenizer)
    if resumption:
        remove_if_empty(run_dir)
        run_dir = resumption.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(replace(config, model=model), run_dir / "config.yaml")
    train(config, model, data, source, resumption, run_dir, tracker, total_steps)


def train(config: TrainConfig, model: ModelConfig, data: PreparedData, source: Source | None, resumption: Resumption | None,
          run_dir: Path, tracker: Tracker, total_steps: int) -> None:  # fmt: skip
    """Build the model, train it, and leave plots and artifacts."""
    from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights
    from gpt2x.train.trainer import Trainer

    peak_tflops = config.hardware.peak_tflops or measure_peak_tflops()
    net = GPT2(model, config.hardware, config.parallel.recompute)
    if not resumption:
        weights: Mapping[str, np.ndarray] = source.weights() if source else initial_weights(model, config.seed)
        if source:
            check_weights(weights, model, origin=f"load={config.load}")
        load_weights(net, weights)
    trainer = Trainer(config, model, net, data, run_dir, tracker, peak_tflops, total_steps)
    if resumption:
        trainer.restore(resumption.saved)
        trainer.metrics.rewind(trainer.state.step)
    unigram = None
    if data.train and data.val and data.train.num_tokens <= UNIGRAM_MAX_TOKENS:
        unigram = unigram_perplexity(data.train, data.val, data.tokenizer.vocab_size)
    console.panel(f"{config.task.name}: {model.name} on {config.dataset.name}",
                  start_panel(config, model, data, source, resumption, run_dir, peak_tflops, total_steps, unigram))  # fmt: skip
    say_what_is_dropped(config, model, data)
    with tracked(replace(config, model=model), tracker, data, run_dir):
        trainer.fit()
        references = {f"unigram model, ppl {unigram:,.0f}": float(np.log(unigram))} if unigram else {}
        finish(trainer, references, unigram)


def prepare_data(config: TrainConfig, source: Source | None, resumption: Resumption | None) -> PreparedData:
    """Blocks of seq_len + 1 tokens by the run's own tokenizer: a checkpoint's, where there is one."""
    own: Tokenizer | None = None
    if resumption:
        assert resumption.saved.tokenizer_dir is not None
        own = Tokenizer.load(resumption.saved.tokenizer_dir)
    elif source and source.tokenizer_dir:
        own = source_tokenizer(source, config.tokenizer)
        check_vocabulary(own, source.model, f"load={config.load}")
    return prepare(config.dataset, config.tokenizer, seq_len=config.trainer.seq_len,
                   cache=Path(config.paths.cache).expanduser(), own_tokenizer=own)  # fmt: skip


def resolve_model(config: TrainConfig, tokenizer: Tokenizer, source: Source | None,
                  resumption: Resumption | None) -> ModelConfig:  # fmt: skip
    """The model with its vocabulary known; sizes, activation and eps must be a loaded checkpoint's."""
    model = config.model
    if resumption:
        return resumption.saved.model
    if source:
        # dropout and padding are the run's to choose; what the weights were trained with is not
        model = replace(model, activation=source.model.activation, layer_norm_eps=source.model.layer_norm_eps,
                        tie_embeddings=source.model.tie_embeddings)  # fmt: skip
        check_model_matches(model, source.model, str(config.load), known_models())
        model = replace(model, vocab_size=source.model.vocab_size)
    if model.vocab_size is None:
        model = replace(model, vocab_size=tokenizer.vocab_size)
    check_vocabulary(tokenizer, model, f"tokenizer={config.tokenizer.name}")
    return model


def check_steps(config: TrainConfig, data: PreparedData, resumption: Resumption | None) -> int:
    """The run's total steps; refuses a corpus below one batch, a warmup beyond the end, a stop behind the start."""
    trainer = config.trainer
    assert data.train is not None
    per_epoch = num_batches(data.train, trainer.global_batch_size, drop_last=True)
    if per_epoch == 0:
        raise UserError(
            f"trainer.global_batch_size={trainer.global_batch_size} exceeds the {data.train.num_blocks} training "
            f"blocks of {trainer.seq_len} tokens: use a smaller batch, a shorter trainer.seq_len or more text"
        )
    total_steps = trainer.max_steps or per_epoch * (trainer.max_epochs or 1)
    validate_warmup(config.schedule, total_steps)
    done = resumption.saved.loop_state["step"] if resumption else 0
    stop = min(total_steps, trainer.stop_after_steps or total_steps)
    if done >= stop:
        raise UserError(
            f"resume={config.resume}: nothing to resume, since {resumption.saved.path if resumption else ''} is at step "
            f"{done} and the run ends at step {stop}; raise "
            + ("trainer.stop_after_steps" if stop < total_steps else "trainer.max_steps or trainer.max_epochs")
        )
    return total_steps


def start_panel(config: TrainConfig, model: ModelConfig, data: PreparedData, source: Source | None, resumption: Resumption | None,
                run_dir: Path, peak_tflops: float, total_steps: int,
                unigram: float | None) -> dict[str, dict[str, str]]:  # fmt: skip
    """What is worth knowing before a run starts."""
    trainer = config.trainer
    assert data.train is not None
    memory = stats.train_memory(
        model, micro_batch_size=trainer.micro_batch_size, seq_len=trainer.seq_len,
        precision=config.hardware.precision, accumulates=trainer.global_batch_size > trainer.micro_batch_size,
        recompute=config.parallel.recompute, keeps_scores=not config.hardware.flash_attention,
    )  # fmt: skip
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory)
    weights = f"from {source.path}" if source else "random"
    if resumption:
        weights = f"from {resumption.saved.path}"
    rows = {
        "model": {
            "parameters": f"{stats.num_params(model):,} ({model.num_layers} layers, {model.num_heads} heads, "
            f"hidden {model.hidden_size}, vocabulary {model.vocab_size:,})",
            "weights": weights,
            "FLOPs a token": f"{stats.train_flops_per_token(model, trainer.seq_len):.3g} (forward and backward)",
            "memory": f"about {memory.total / 1e9:.2f} GB of "
            f"{config.hardware.memory_gb or machine_memory_gb():.0f} GB ({parts})",
        },
        "data": {
            "training": describe(data.train),
            "validation": describe(data.val) if data.val else "none",
            "tokenizer": f"{data.facts['tokenizer']}, {data.tokenizer.vocab_size:,} tokens",
        },
        "run": {
            "steps": f"{total_steps:,} of {trainer.global_batch_size} x {trainer.seq_len} tokens "
            f"({trainer.global_batch_size // trainer.micro_batch_size} micro batches each), "
            f"{total_steps / num_batches(data.train, trainer.global_batch_size, drop_last=True):.2f} epochs",
            "device": f"{config.hardware.name}, {config.hardware.precision}, peak {peak_tflops:.3g} TFLOP/s "
            f"({config.hardware.source})",
            "directory": str(run_dir),
        },
    }
    if unigram:
        rows["data"]["unigram perplexity"] = f"{unigram:,.1f} a validation token: what word counts alone reach"
    return rows


def describe(split: object) -> str:
    """A split in one line."""
    num_words = f", {split.num_words:,} words" if getattr(split, "num_words", None) else ""  # type: ignore[attr-defined]
    return f"{split.num_tokens:,} tokens in {split.num_blocks:,} blocks of {split.block_len}{num_words}"  # type: ignore[attr-defined]


def say_what_is_dropped(config: TrainConfig, model: ModelConfig, data: PreparedData) -> None:
    """Notices about data that a run does not see, and about a vocabulary larger than the tokenizer's."""
    assert data.train is not None
    for note in data.facts.get("notes", ()):  # type: ignore[attr-defined]
        console.notice(f"note: {note}")
    tail = data.train.num_blocks % config.trainer.global_batch_size
    if tail:
        console.notice(f"note: each epoch leaves out {tail} of {data.train.num_blocks:,} blocks, other ones each time")
    for name, split in (("training", data.train), ("validation", data.val)):
        if split and split.dropped_tokens:
            console.notice(f"note: {split.dropped_tokens:,} {name} tokens fill no block and are dropped")
    if (model.vocab_size or 0) > data.tokenizer.vocab_size:
        console.notice(
            f"note: model.vocab_size={model.vocab_size} exceeds the tokenizer's {data.tokenizer.vocab_size} "
            "tokens; the rest of the embedding stays unused (model.vocab_size=null fits it)"
        )


@contextlib.contextmanager
def tracked(config: TrainConfig, tracker: Tracker, data: PreparedData, run_dir: Path) -> Iterator[None]:
    """Open the tracker's run and close it with the status that fits."""
    tracker.start(
        RunInfo(
            experiment=config.tracker.experiment or config.task.name,
            run_name=config.tracker.run_name or f"{config.model.name}/{config.dataset.name}",
            run_dir=run_dir,
            params=asdict(config),
            tags=run_tags(layout=config.parallel.name, hardware=config.hardware.name, data_hash=data.fingerprint),
        )
    )
    status = "FAILED"
    try:
        tracker.log_artifact(run_dir / "config.yaml")
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        for name in ("loss.png", "samples.txt"):
            if (run_dir / name).is_file():
                tracker.log_artifact(run_dir / name)
        tracker.finish(status)


def finish(trainer: object, references: dict[str, float], unigram: float | None) -> None:
    """The loss curve, and the last words on the terminal."""
    from gpt2x.tracking.plots import plot_loss
    from gpt2x.train.trainer import Trainer

    assert isinstance(trainer, Trainer)
    run_dir, state = trainer.run_dir, trainer.state
    title = f"{trainer.model.name} on {trainer.config.dataset.name}"
    plot_loss(run_dir / "metrics.jsonl", run_dir / "loss.png", title, references)
    if state.step < trainer.total_steps:
        console.notice(f"stopped after step {state.step} of {trainer.total_steps}; go on with resume=auto")
    elif state.best_loss is not None:
        against = f"; a unigram model has {unigram:,.1f}" if unigram else ""
        console.notice(f"best validation perplexity {np.exp(state.best_loss):.2f} at step {state.best_step}{against}")
    console.notice(f"run directory: {run_dir}")


def remove_if_empty(directory: Path) -> None:
    """Take away the directory that Hydra made for a run that goes on elsewhere."""
    with contextlib.suppress(OSError):
        directory.rmdir()
