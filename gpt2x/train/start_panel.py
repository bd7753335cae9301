"""What a training run says before its first step."""

from __future__ import annotations

from gpt2x.config.layout import Coordinates, micro_batch_size, num_micro_batches, world_size
from gpt2x.model import stats
from gpt2x.optim.registry import state_names
from gpt2x.planner.memory import step_memory, usable_bytes
from gpt2x.runtime.console import console
from gpt2x.tasks.base import Baseline
from gpt2x.train.decision import Decision


def describe_model(decision: Decision) -> dict[str, str]:
    """Parameters, where the weights are from, FLOPs and memory."""
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
    )
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory if size)
    usable = usable_bytes(hardware, world_size(parallel) // decision.config.launch.num_nodes)
    described = decision.trainable.description()
    if described and decision.base:
        described += f", beside {decision.base.path}"
    return {
        "parameters": f"{stats.num_params(model):,} ({model.num_layers} layers, {model.num_heads} heads, "
        f"hidden {model.hidden_size}, vocabulary {model.vocab_size:,})",
        **({"trained": described} if described else {}),
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
    return f"from {source.weights.path}" if source.weights else f"random, seed {seed}"


def show_panel(decision: Decision, peak_tflops: float, baseline: Baseline | None) -> None:
    """Print the start panel, and notices about data that the run does not see."""
    config, data = decision.config, decision.data
    trainer, hardware = config.trainer, config.hardware
    tokenizer = config.tokenizer.path if decision.num_added_rows else data.summary.tokenizer
    facts = {
        "training": decision.task.describe(decision.train_split),
        "validation": decision.task.describe(data.val) if data.val else "none",
        "tokenizer": f"{tokenizer}, {data.tokenizer.vocab_size:,} tokens",
    }
    if data.labels:
        facts["labels"] = ", ".join(data.labels)
    if baseline:
        facts[baseline.key] = baseline.text
    run = {
        "steps": f"{decision.steps.total:,} of {trainer.global_batch_size} x {trainer.seq_len} tokens "
        f"({config.parallel.data} x {num_micro_batches(config.parallel, trainer)} x "
        f"{micro_batch_size(config.parallel, trainer)} sequences), "
        f"{decision.steps.total / decision.steps.per_epoch:.2f} epochs",
        "device": f"{hardware.name}, {hardware.precision}, peak {peak_tflops:.3g} TFLOP/s ({hardware.source})",
        "directory": str(decision.run_dir),
    }
    title = f"{config.task.name}: {decision.model.name} on {config.dataset.name}"
    console.panel(title, {"model": describe_model(decision), "data": facts, "run": run})
    for text in notices(decision):
        console.notice(f"note: {text}")


def notices(decision: Decision) -> list[str]:
    """What is left out, changed or unused."""
    config, data, train = decision.config, decision.data, decision.train_split
    found = list(data.summary.notes)
    tail = train.num_blocks % config.trainer.global_batch_size
    if tail:
        rows = decision.task.rows
        found.append(f"each epoch leaves out {tail} of {train.num_blocks:,} {rows}, other ones each time")
    for name, split in (("training", train), ("validation", data.val)):
        if split and split.dropped_tokens and decision.task.rows == "blocks":
            found.append(f"{split.dropped_tokens:,} {name} tokens fill no block and are dropped")
    if (decision.model.vocab_size or 0) > data.tokenizer.vocab_size:
        found.append(
            f"model.vocab_size={decision.model.vocab_size} exceeds the tokenizer's {data.tokenizer.vocab_size} tokens; "
            "the rest of the embedding stays unused (model.vocab_size=null fits it)"
        )
    if config.hardware.flash_attention and not stats.uses_flash_attention(decision.model, config.hardware):
        found.append("flash attention is off: it takes model.attention_dropout=0 and fp16 or bf16")
    weights = decision.source.weights
    if weights:
        if decision.num_added_rows:
            found.append(
                f"tokenizer.extend: {decision.num_added_rows} rows added to the embedding's "
                f"{weights.model.vocab_size:,}, each the mean of those, for tokens of "
                f"tokenizer.path={config.tokenizer.path}"
            )
        for key in ("activation", "layer_norm_eps", "tie_embeddings"):
            wanted, own = getattr(config.model, key), getattr(decision.model, key)
            if wanted != own:
                found.append(f"model.{key}={own}, as the loaded checkpoint says (configured: {wanted})")
    if decision.source.resumption:
        found += [f"changed since the checkpoint: {line}" for line in decision.source.resumption.differences]
        if not decision.source.resumption.saved.loop_state.get("data_sha256"):
            found.append("the checkpoint is of an older version, without a hash that the data can be compared with")
    return found
