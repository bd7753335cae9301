"""The panel and the notes that a training run prints before its first step."""

from __future__ import annotations

from gpt2x.config import ModelConfig
from gpt2x.config.keys import spell
from gpt2x.config.layout import Coordinates, micro_batch_size, num_micro_batches, world_size
from gpt2x.config.schema_devices import FLASH_KERNEL
from gpt2x.model import stats
from gpt2x.optim.registry import state_names
from gpt2x.planner.choose import sharding_reason
from gpt2x.planner.memory import copies_checkpoint, step_memory, usable_bytes
from gpt2x.runtime.console import console
from gpt2x.tasks.base import Baseline
from gpt2x.train.decision import Decision
from gpt2x.train.resume import best_is_of_other_rows

RATES = ("model.dropout", "model.embedding_dropout", "model.attention_dropout")


def describe_model(decision: Decision) -> dict[str, str]:
    """Return parameters, source of the weights, FLOPs and memory."""
    model, trainer, hardware = decision.model, decision.config.trainer, decision.config.hardware
    parallel = decision.config.parallel
    memory = step_memory(
        decision.trainable,
        Coordinates(parallel, 0),
        hardware,
        num_states=len(state_names(decision.config.optimizer.kind)),
        micro_batch_size=micro_batch_size(parallel, trainer),
        micro_batches=num_micro_batches(parallel, trainer),
        seq_len=trainer.seq_len,
        copies_checkpoint=copies_checkpoint(trainer),
    )
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory if size)
    usable = usable_bytes(hardware, world_size(parallel) // decision.config.launch.num_nodes)
    trained = decision.trainable.description()
    if trained and decision.base:
        trained += f", beside {decision.base.path}"
    return {
        "parameters": f"{stats.num_params(model):,} ({model.num_layers} layers, {model.num_heads} heads, "
        f"hidden {model.hidden_size}, vocabulary {model.vocab_size:,})",
        **({"trained": trained} if trained else {}),
        "weights": origin_of_weights(decision),
        "FLOPs per token": f"{decision.trainable.flops_per_token(trainer.seq_len):.3g} (forward and backward)",
        "memory estimate": f"{memory.total / 1e9:.2f} GB ({parts}) of {usable / 1e9:.1f} GB",
    }


def origin_of_weights(decision: Decision) -> str:
    """Return where the trained values come from."""
    source, seed = decision.source, decision.config.seed
    if source.resumption:
        return f"from {source.resumption.saved.path}"
    if decision.base:
        return f"from {source.adapter.path}" if source.adapter else f"fresh adapters, seed {seed}"
    if source.weights is None:
        return f"random, seed {seed}"
    return f"from {source.weights.path}, with its model" + (" and tokenizer" if source.weights.tokenizer_dir else "")


def show_panel(decision: Decision, peak_tflops: float, baseline: Baseline | None) -> None:
    """Print the start panel and the notes."""
    config, data = decision.config, decision.data
    trainer, hardware = config.trainer, config.hardware
    tokenizer = config.tokenizer.path if decision.num_added_rows else data.summary.tokenizer
    facts = {
        "training": decision.task.describe(decision.train_split),
        "validation": describe_validation(decision),
        "tokenizer": f"{tokenizer}, {data.tokenizer.vocab_size:,} tokens",
    }
    if data.labels:
        facts["labels"] = ", ".join(data.labels)
    if baseline:
        facts[baseline.key] = baseline.text
    run = {
        "steps": f"{decision.steps.total:,} of {trainer.batch} x {trainer.seq_len} tokens "
        f"({config.parallel.data} x {num_micro_batches(config.parallel, trainer)} x "
        f"{micro_batch_size(config.parallel, trainer)} sequences), "
        f"{decision.steps.total / decision.steps.per_epoch:.2f} epochs",
        "device": f"{hardware.name}, {hardware.precision}, peak {peak_tflops:.3g} TFLOP/s ({hardware.source})",
        "directory": str(decision.run_dir),
    }
    if config.parallel.data > 1:
        run["sharding"] = sharding_reason(config)
    title = f"{config.task.name}: {decision.model.name} on {config.dataset.name}"
    console.panel(title, {"model": describe_model(decision), "data": facts, "run": run})
    for text in notes_of(decision):
        console.notice(f"note: {text}")


def describe_validation(decision: Decision) -> str:
    """Return the size of the validation split, and how many of its rows are used."""
    val, max_rows = decision.data.val, decision.config.trainer.max_eval_rows
    if val is None:
        return "none"
    used = f"; {max_rows:,} {decision.task.rows} of it, drawn once" if max_rows and max_rows < val.num_blocks else ""
    return decision.task.describe(val) + used


def notes_of(decision: Decision) -> list[str]:
    """Return what the run leaves out, changes or does not use."""
    return [*data_notes(decision), *model_notes(decision), *resumption_notes(decision)]


def data_notes(decision: Decision) -> list[str]:
    """Return the rows and tokens that are not used."""
    config, data, train = decision.config, decision.data, decision.train_split
    notes = list(data.summary.notes)
    if data.tokenizer.loss:
        notes.append(f"tokenizer: {data.tokenizer.note_of_loss}")
    tail = train.num_blocks % config.trainer.batch
    if tail:
        rows = decision.task.rows
        notes.append(f"each epoch leaves out {tail} of {train.num_blocks:,} {rows}, different ones each time")
    for name, split in (("training", train), ("validation", data.val)):
        if split and split.dropped_tokens and decision.task.rows == "blocks":
            notes.append(f"{split.dropped_tokens:,} {name} tokens fill no block and are dropped")
    return notes


def model_notes(decision: Decision) -> list[str]:
    """Return what the model does not use, and where it differs from the configured one."""
    config, model = decision.config, decision.model
    weights = None if decision.source.resumption else decision.source.weights
    num_tokens = decision.data.tokenizer.vocab_size
    notes = []
    if (model.vocab_size or 0) > num_tokens:
        notes.append(
            f"model.vocab_size={model.vocab_size} exceeds the tokenizer's {num_tokens} tokens; the other rows of the "
            "embedding are never used. Set model.vocab_size=null to avoid them."
        )
    if config.hardware.flash_attention and not stats.uses_flash_attention(model, config.hardware):
        notes.append(f"flash attention is off: it requires {FLASH_KERNEL}")
    if weights and decision.num_added_rows:
        notes.append(
            f"tokenizer.extend: {decision.num_added_rows} rows added to the embedding's {weights.model.vocab_size:,}, "
            f"each initialized to their mean, for tokens of tokenizer.path={config.tokenizer.path}"
        )
    return [*notes, *(choices_of_run(decision, weights.model) if weights else [])]


def choices_of_run(decision: Decision, loaded: ModelConfig) -> list[str]:
    """Return where the run differs from the loaded model, in what its weights do not decide."""
    model, trainer = decision.model, decision.config.trainer
    notes = [
        f"{key}={spell(now)}, where the loaded model has {spell(then)}"
        for key in RATES
        if (now := rate(model, key)) != (then := rate(loaded, key))
    ]
    if loaded.labels and model.labels != loaded.labels:
        fate = "keeps its head, which has no names" if stats.keeps_head(model, loaded) else "gets a new head"
        notes.append(f"the loaded classifier is for {', '.join(loaded.labels)}; it {fate}")
    if trainer.seq_len == model.max_seq_len:
        notes.append(f"trainer.seq_len={trainer.seq_len}, all positions of the loaded model")
    return notes


def rate(model: ModelConfig, key: str) -> float:
    """Return a rate of dropout; one that is null is that of all."""
    value = getattr(model, key.removeprefix("model."))
    return model.dropout if value is None else value


def resumption_notes(decision: Decision) -> list[str]:
    """Return how a resumed run differs from the one that wrote the checkpoint."""
    resumption = decision.source.resumption
    if resumption is None:
        return []
    notes = [f"changed since the checkpoint: {line}" for line in resumption.differences]
    reason = best_is_of_other_rows(decision.config, resumption.saved.run_config)
    if reason and resumption.saved.loop_state.get("best_value") is not None:
        notes.append(f"the checkpoint validated by {reason}: its best value does not compare and is forgotten")
    stored = resumption.saved.loop_state.get("data_sha256")
    if not stored:
        notes.append("the checkpoint was written by an older version, without a hash to compare the data with")
    elif stored != decision.data.fingerprint:  # an error if no key of the configuration has changed
        notes.append(
            f"its rows differ from those that the run was trained on (sha256 {stored[:12]} -> "
            f"{decision.data.fingerprint[:12]})"
        )
    return notes
