"""Cross-field checks of a configuration, each with key, value and fix (floor 0; imports no mindspore).

They run before any work and never change the configuration.
"""

from __future__ import annotations

from gpt2x.config import (
    CommonConfig,
    DatasetConfig,
    EvaluateConfig,
    GenerationConfig,
    ModelConfig,
    PredictConfig,
    ScheduleConfig,
    TrainConfig,
)
from gpt2x.config.layout import divisors, stage_layers, validate_batch, validate_layout, validate_parallel, world_size
from gpt2x.config.patterns import adapted_modules
from gpt2x.errors import require, require_above_zero, require_at_least, require_choice, require_share

ACTIVATIONS = ("gelu_new", "gelu", "fast_gelu")
SCHEDULES = ("constant", "linear", "cosine", "cosine_restarts", "polynomial")
PRECISIONS = ("fp32", "fp16", "bf16")
RECOMPUTES = ("none", "attention", "block")
PLANS = ("false", "true", "search")
PROTOCOLS = ("reference", "strided", "word")
CORPUS_PROTOCOLS = ("clean", "reference")
METRICS = {
    "language_modeling": ("val/loss", "val/ppl"),
    "classification": ("val/loss", "val/accuracy", "val/f1", "val/mcc"),
    "instruction": ("val/loss", "val/ppl"),
}  # of a validation, by objective


def validate_model(model: ModelConfig) -> None:
    """Check a model's shape."""
    for key in (
        "num_layers",
        "num_heads",
        "hidden_size",
        "max_seq_len",
        "vocab_size",
        "ffn_size",
        "pad_vocab_multiple",
    ):
        require_at_least(f"model.{key}", getattr(model, key), 1)
    require(
        model.hidden_size % model.num_heads == 0,
        f"model.hidden_size={model.hidden_size} is not divisible by model.num_heads={model.num_heads}; "
        f"heads that divide it: {', '.join(str(n) for n in range(1, 129) if model.hidden_size % n == 0)}",
    )
    require_choice("model.activation", model.activation, ACTIVATIONS)
    for key in ("dropout", "embedding_dropout", "attention_dropout"):
        require_share(f"model.{key}", getattr(model, key))
    require_above_zero("model.layer_norm_eps", model.layer_norm_eps)
    require_above_zero("model.initializer_range", model.initializer_range)


def validate_common(config: CommonConfig) -> None:
    """Check what every entry point has."""
    require_choice("hardware.precision", config.hardware.precision, PRECISIONS)
    require_choice("parallel.recompute", config.parallel.recompute, RECOMPUTES)
    validate_parallel(config.parallel)
    validate_launch(config)
    require(
        not (config.hardware.is_cpu and config.hardware.precision == "bf16"),
        "hardware.precision=bf16: MindSpore computes no bf16 on the CPU; use fp32, or fp16 to try the loss scale",
    )
    require_at_least("seed", config.seed, 0)


def validate_launch(config: CommonConfig) -> None:
    """Check where the processes of a layout meet."""
    launch, size = config.launch, world_size(config.parallel)
    for key in ("num_nodes", "timeout_s"):
        require_at_least(f"launch.{key}", getattr(launch, key), 1)
    require(
        launch.port is None or 1 <= launch.port <= 65535,
        f"launch.port={launch.port} is not a port; give one from 1024 to 65535, or null for a free one (a single node)",
    )
    require(
        0 <= launch.node_rank < launch.num_nodes,
        f"launch.node_rank={launch.node_rank} must be from 0 to {launch.num_nodes - 1} with launch.num_nodes="
        f"{launch.num_nodes}",
    )
    require(
        size % launch.num_nodes == 0,
        f"launch.num_nodes={launch.num_nodes} does not divide the {size} processes of parallel="
        f"{config.parallel.name}; use one of {divisors(size)}",
    )
    for key, example in (("address", "NODE_0"), ("port", "8118")):
        require(
            launch.num_nodes == 1 or getattr(launch, key) is not None,
            f"launch.{key}=null, but launch.num_nodes={launch.num_nodes}: the nodes cannot find each other; give all "
            f"of them the same launch.{key}={example}",
        )


def require_devices(config: CommonConfig) -> None:
    """Refuse to start more processes than a node has devices."""
    hardware, num_nodes = config.hardware, config.launch.num_nodes
    size, devices = world_size(config.parallel), hardware.devices_per_node
    require(
        hardware.is_cpu or size <= num_nodes * devices,
        f"parallel={config.parallel.name} has {size} processes, but launch.num_nodes={num_nodes} of hardware="
        f"{hardware.name} has {num_nodes * devices} devices; use launch.num_nodes={-(-size // devices)} or a smaller "
        "layout",
    )


def validate_inference(config: CommonConfig, script: str) -> None:
    """Refuse layouts in which a process has not every layer and every token."""
    parallel, layouts = config.parallel, f"{script} runs under data and tensor layouts"
    require(
        parallel.pipeline == 1,
        f"parallel.pipeline={parallel.pipeline} (parallel={parallel.name}): {layouts}; use parallel=tp2, or another "
        "with parallel.pipeline=1",
    )
    require(
        not parallel.sequence_parallel,
        f"parallel.sequence_parallel=true (parallel={parallel.name}): {layouts}; use parallel.sequence_parallel=false",
    )
    require(
        not config.tokenizer.extend,
        f"tokenizer.extend=true adds rows to an embedding that is then trained, and {script} trains nothing; use "
        "train.py, and load= what it writes",
    )


def validate_generation(generation: GenerationConfig) -> None:
    """Check decoding options."""
    require_at_least("generation.max_new_tokens", generation.max_new_tokens, 1)
    require_at_least("generation.min_new_tokens", generation.min_new_tokens, 0)
    require(
        generation.min_new_tokens <= generation.max_new_tokens,
        f"generation.min_new_tokens={generation.min_new_tokens} exceeds "
        f"generation.max_new_tokens={generation.max_new_tokens}",
    )
    require_at_least("generation.batch_size", generation.batch_size, 1)
    require_at_least("generation.draft_tokens", generation.draft_tokens, 1)
    require_choice("generation.weights", generation.weights, ("fp32", "bf16", "int8"))
    if generation.draft is not None:
        validate_draft(generation)
    require_at_least("generation.temperature", generation.temperature, 0)
    require_at_least("generation.top_k", generation.top_k, 0)
    top_p = generation.top_p
    require(top_p is None or 0 < top_p <= 1, f"generation.top_p={top_p} must be above 0 and at most 1")
    require(
        generation.repetition_penalty > 0,
        f"generation.repetition_penalty={generation.repetition_penalty} must be above 0 (1 is off)",
    )
    sampling = [key for key in ("temperature", "top_k", "top_p") if getattr(generation, key)]
    require(
        generation.do_sample is not False or not sampling,
        f"generation.do_sample=false decodes greedily, so generation.{', generation.'.join(sampling)} "
        "would have no effect; drop them or use generation.do_sample=true",
    )
    require(
        not (generation.do_sample and generation.temperature == 0),
        "generation.temperature=0 is greedy decoding; drop generation.do_sample=true or raise the temperature",
    )


def validate_draft(generation: GenerationConfig) -> None:
    """Refuse options that change the model's choice: a draft is checked against the likeliest tokens alone."""
    fixes = {
        "temperature": not generation.temperature,
        "top_k": not generation.top_k or generation.temperature == 0,
        "top_p": not generation.top_p or generation.temperature == 0,
        "do_sample": not generation.do_sample,
        "repetition_penalty": generation.repetition_penalty == 1.0,
        "min_new_tokens": generation.min_new_tokens == 0,
    }
    wrong = [f"generation.{key}={getattr(generation, key)}" for key, is_right in fixes.items() if not is_right]
    require(
        not wrong,
        f"generation.draft={generation.draft} decodes greedily, so that the text is the model's own; drop "
        f"{', '.join(wrong)}, or use generation.draft=null",
    )


def validate_train(config: TrainConfig) -> None:
    """Check `train.py`'s configuration across fields, before any work is done."""
    validate_common(config)
    validate_model(config.model)
    validate_generation(config.generation)
    require(
        config.generation.draft is None,
        f"generation.draft={config.generation.draft} is for predict.py; train.py's samples need generation.draft=null",
    )
    require_choice("plan", config.plan.lower(), PLANS)
    require_at_least("num_devices", config.num_devices, 1)
    require_choice("schedule.name", config.schedule.name, SCHEDULES)
    require_choice("dataset.protocol", config.dataset.protocol, CORPUS_PROTOCOLS)
    trainer, schedule = config.trainer, config.schedule
    for key in ("max_steps", "max_epochs", "global_batch_size", "micro_batch_size", "seq_len", "log_every_steps",
                "eval_every_steps", "sample_every_steps", "checkpoint_every_steps", "max_eval_batches", "keep_last",
                "stop_after_steps", "early_stopping_patience"):  # fmt: skip
        require_at_least(f"trainer.{key}", getattr(trainer, key), 1)
    require_choice("task.objective", config.task.objective, tuple(METRICS))
    require_choice("trainer.best_metric", trainer.best_metric, METRICS[config.task.objective])
    require(
        trainer.early_stopping_patience is None or trainer.eval_every_steps is not None,
        f"trainer.early_stopping_patience={trainer.early_stopping_patience} counts evaluations, but "
        "trainer.eval_every_steps=null evaluates at the end alone; give trainer.eval_every_steps=STEPS",
    )
    if config.task.objective == "classification":
        validate_classification(config)
    if config.task.objective == "instruction":
        validate_instruction(config)
    require(
        trainer.max_steps is not None or trainer.max_epochs is not None,
        "trainer.max_steps and trainer.max_epochs are both null; give one of them",
    )
    validate_layout(config.parallel, config.model)
    validate_lora(config)
    require(
        not (config.trainer.frozen and is_plan(config)),
        f"plan={config.plan.lower()} predicts full training, not trainer.frozen=[{','.join(config.trainer.frozen)}]; "
        "drop it, for an upper bound",
    )
    validate_batch(config.parallel, trainer)
    require(
        trainer.seq_len <= config.model.max_seq_len,
        f"trainer.seq_len={trainer.seq_len} exceeds model.max_seq_len={config.model.max_seq_len}: "
        f"use trainer.seq_len={config.model.max_seq_len} or less",
    )
    require(
        trainer.grad_clip is None or trainer.grad_clip > 0,
        f"trainer.grad_clip={trainer.grad_clip} must be above 0; null switches it off",
    )
    for key in ("loss_scale_init", "loss_scale_window"):
        require_above_zero(f"trainer.{key}", getattr(trainer, key))
    require_at_least("trainer.loss_scale_factor", trainer.loss_scale_factor, 1)
    require_at_least("trainer.max_skipped_steps", trainer.max_skipped_steps, 0)
    for key in ("learning_rate", "eps"):
        require_above_zero(f"optimizer.{key}", getattr(config.optimizer, key))
    layer_decay = config.optimizer.layer_decay
    require(
        layer_decay is None or 0 < layer_decay <= 1,
        f"optimizer.layer_decay={layer_decay} must be above 0 and at most 1, as 0.8; null gives every layer one rate",
    )
    require_at_least("schedule.num_cycles", schedule.num_cycles, 1)
    require_above_zero("schedule.power", schedule.power)
    for key in ("beta1", "beta2"):
        require_share(f"optimizer.{key}", getattr(config.optimizer, key))
    require_at_least("optimizer.weight_decay", config.optimizer.weight_decay, 0)
    require(
        schedule.warmup_steps is None or schedule.warmup_ratio is None,
        f"schedule.warmup_steps={schedule.warmup_steps} and schedule.warmup_ratio={schedule.warmup_ratio} "
        "are both given; set one of them to null",
    )
    require_at_least("schedule.warmup_steps", schedule.warmup_steps, 0)
    require_share("schedule.warmup_ratio", schedule.warmup_ratio)
    require(0 <= schedule.final_ratio <= 1, f"schedule.final_ratio={schedule.final_ratio} must be between 0 and 1")
    if trainer.max_steps is not None:
        validate_warmup(schedule, trainer.max_steps)
    require(
        config.load is not None or config.resume is not None or not config.task.requires_load or is_plan(config),
        f"task={config.task.name} starts from trained weights: give load=DIR (a gpt2x checkpoint or a Hugging Face "
        "directory), or use task=pretrain",
    )


def validate_classification(config: TrainConfig) -> None:
    """Refuse text without labels, and layouts that share out what a classifier's head reads."""
    require_labelled(config.dataset, f"task={config.task.name}")
    parallel = config.parallel
    require(
        parallel.tensor == parallel.pipeline == 1,
        f"parallel={parallel.name} (parallel.tensor={parallel.tensor}, parallel.pipeline={parallel.pipeline}): "
        f"task={config.task.name} runs under data layouts; use parallel=single, or dp2 and its like",
    )


def validate_instruction(config: TrainConfig) -> None:
    """Refuse text without responses, and packed rows where stages exchange hidden states alone."""
    require(
        config.dataset.corpus == "instructions",
        f"dataset={config.dataset.name} has no responses, which task={config.task.name} learns; use dataset=alpaca, or "
        "dataset=instructions for your own .json or .jsonl",
    )
    require(
        config.parallel.pipeline == 1 or not config.dataset.packing,
        f"dataset.packing=true: pipeline stages (parallel={config.parallel.name}, parallel.pipeline="
        f"{config.parallel.pipeline}) do not know where a packed row's examples begin; use dataset.packing=false, or a "
        "layout with parallel.pipeline=1",
    )


def require_labelled(dataset: DatasetConfig, reason: str) -> None:
    """Refuse a corpus without labels."""
    require(
        dataset.corpus == "labelled",
        f"dataset={dataset.name} has no labels, which {reason} needs; use dataset=sst2, cola, ag_news, imdb, or "
        "labelled_text for your own .csv, .tsv or .jsonl",
    )


def validate_lora(config: TrainConfig) -> None:
    """Check adapters: the numbers, the targets, and what they stand beside."""
    lora, parallel = config.lora, config.parallel
    if lora.rank is None:
        require(
            not config.adapters,
            f"adapters=[{','.join(config.adapters)}]: training goes on from an adapter with lora=, and adapts what it "
            "adapts; to train all weights instead, merge it first (python -m gpt2x.convert --merge)",
        )
        return
    require_at_least("lora.rank", lora.rank, 1)
    require(lora.alpha is not None, "lora.alpha=null: give the scale of the adapters, such as lora.alpha=16")
    require_above_zero("lora.alpha", lora.alpha)
    require_share("lora.dropout", lora.dropout)
    modules = adapted_modules(lora, config.model.num_layers)
    layers = {int(name.split(".")[1]) for name in modules}
    for stage in range(parallel.pipeline):
        own = stage_layers(config.model.num_layers, parallel.pipeline, stage)
        require(
            not layers.isdisjoint(own),
            f"lora.targets=[{','.join(lora.targets)}] adapts nothing in layers {own.start} to {own.stop - 1}, which "
            f"stage {stage} of parallel.pipeline={parallel.pipeline} has: it would have nothing to train; use a layout "
            "with parallel.pipeline=1, or targets in the layers of every stage",
        )
    require(
        len(config.adapters) <= 1,
        f"adapters=[{','.join(config.adapters)}]: training goes on from one adapter; give one of them",
    )
    require(
        not is_plan(config),
        f"plan={config.plan.lower()} predicts full training, not lora={lora.name}; drop lora=, for an upper bound",
    )
    require(
        config.load is not None or config.resume is not None,
        f"lora={lora.name} trains adapters beside frozen weights, and load=null leaves these random: give load=DIR "
        "(a gpt2x checkpoint or a Hugging Face directory)",
    )


def is_plan(config: TrainConfig) -> bool:
    """Whether nothing is to be run."""
    return config.plan.lower() != "false"


def validate_warmup(schedule: ScheduleConfig, total_steps: int) -> None:
    """Refuse a warmup that leaves no step at the peak rate (the reference's 2000 on WikiText-2)."""
    steps = schedule.warmup_steps or round((schedule.warmup_ratio or 0.0) * total_steps)
    key = "warmup_ratio" if schedule.warmup_steps is None else "warmup_steps"
    require(
        steps == 0 or steps < total_steps,
        f"schedule.{key}={getattr(schedule, key)} is not below the run's {total_steps} steps, so the peak rate "
        "would never be held; use fewer, or schedule.warmup_steps=null schedule.warmup_ratio=0.1",
    )


def validate_evaluate(config: EvaluateConfig) -> None:
    """Check `evaluate.py`'s configuration."""
    validate_common(config)
    validate_inference(config, "evaluate.py")
    require(
        config.load is not None,
        "load=null: evaluate.py evaluates trained weights, never random ones; give load=DIR "
        "(a gpt2x checkpoint or a Hugging Face directory)",
    )
    for protocol in config.evaluation.protocols:
        require_choice("evaluation.protocols", protocol, PROTOCOLS)
    require(bool(config.evaluation.protocols), f"evaluation.protocols=[] is empty; choose from: {', '.join(PROTOCOLS)}")
    require_choice("evaluation.split", config.evaluation.split, ("train", "val"))
    require_choice("dataset.protocol", config.dataset.protocol, CORPUS_PROTOCOLS)
    for key in ("stride", "seq_len", "batch_size"):
        require_at_least(f"evaluation.{key}", getattr(config.evaluation, key), 1)
    require_at_least("evaluation.bootstrap_resamples", config.evaluation.bootstrap_resamples, 0)


def validate_predict(config: PredictConfig) -> None:
    """Check `predict.py`'s configuration."""
    validate_common(config)
    validate_inference(config, "predict.py")
    validate_generation(config.generation)
    require(
        config.load is not None,
        "load=null: predict.py needs trained weights; give load=DIR (a gpt2x checkpoint or a Hugging Face directory)",
    )
    require(
        config.adapter is None or bool(config.adapters),
        f"adapter={config.adapter} names none, since adapters=[]; give adapters=[DIR]",
    )
    require(
        (config.prompts is None) != (config.prompts_file is None),
        f"prompts={config.prompts} and prompts_file={config.prompts_file}: give exactly one of them, as "
        "'prompts=[\"Once upon a time\"]' or prompts_file=FILE",
    )
