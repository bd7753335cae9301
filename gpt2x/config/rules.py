"""Rules across the fields of a configuration (imports no mindspore).

They run before any work and never change the configuration. `gpt2x.config.keys.check_values` checks each value by
itself.
"""

from __future__ import annotations

from gpt2x.config.keys import check_values
from gpt2x.config.layout import divisors, stage_layers, validate_batch, validate_layout, validate_parallel, world_size
from gpt2x.config.patterns import adapted_modules
from gpt2x.config.rules_inspection import validate_inspection
from gpt2x.config.schema import (
    CommonConfig,
    EvaluateConfig,
    GenerationConfig,
    ModelConfig,
    PredictConfig,
    ScheduleConfig,
    TrackerConfig,
    TrainConfig,
    TrainerConfig,
)
from gpt2x.config.schema_devices import HardwareConfig
from gpt2x.errors import require


def validate_model(model: ModelConfig) -> None:
    """Check the shape of a model."""
    require(
        model.hidden_size % model.num_heads == 0,
        f"model.hidden_size={model.hidden_size} is not divisible by model.num_heads={model.num_heads}; "
        f"use one of {', '.join(str(n) for n in range(1, 129) if model.hidden_size % n == 0)} heads.",
    )


def validate_common(config: CommonConfig) -> None:
    """Check the keys that train, evaluate and predict have."""
    check_values(config)
    validate_parallel(config.parallel)
    validate_launch(config)
    validate_hardware(config.hardware)


def validate_hardware(hardware: HardwareConfig) -> None:
    """Check what a device can do."""
    if hardware.is_cpu:
        require(
            hardware.precision != "bf16" or hardware.native_kernels,
            "hardware.precision=bf16: on the CPU only gpt2x's C++ kernels compute it; use hardware.native_kernels=true "
            "or hardware.precision=fp32.",
        )
        for key, neutral, fix, why in (
            ("jit_level", "O0", "O0", "MindSpore fuses no operators on the CPU"),
            ("bind_cores", False, "false", "processes on the CPU share its cores without it"),
            ("pool_gb", None, "null", "MindSpore's memory on the CPU is no pool; hardware.memory_gb limits the plan"),
        ):
            value = getattr(hardware, key)
            require(
                value == neutral,
                f"hardware.{key}={'true' if value is True else value} is for Ascend: {why}; use hardware.{key}={fix}.",
            )
        return
    require(
        hardware.memory_gb is not None,
        f"hardware.memory_gb=null: only the CPU's memory can be asked; give the GB of a device of hardware="
        f"{hardware.name}, such as hardware.memory_gb=64.",
    )
    require(
        (hardware.pool_gb or 0) <= (hardware.memory_gb or 0),
        f"hardware.pool_gb={hardware.pool_gb} exceeds hardware.memory_gb={hardware.memory_gb}; leave room for the "
        "driver and HCCL, as hardware.pool_gb=null does.",
    )


def validate_launch(config: CommonConfig) -> None:
    """Check where the processes of a layout meet."""
    launch, size = config.launch, world_size(config.parallel)
    require(
        launch.node_rank < launch.num_nodes,
        f"launch.node_rank={launch.node_rank} must be from 0 to {launch.num_nodes - 1} with launch.num_nodes="
        f"{launch.num_nodes}.",
    )
    require(
        size % launch.num_nodes == 0,
        f"launch.num_nodes={launch.num_nodes} does not divide the {size} processes of parallel="
        f"{config.parallel.name}; use one of {divisors(size)}.",
    )
    for key, example in (("address", "NODE_0"), ("port", "8118")):
        require(
            launch.num_nodes == 1 or getattr(launch, key) is not None,
            f"launch.{key}=null, but launch.num_nodes={launch.num_nodes}: the nodes cannot find each other; give all "
            f"of them the same launch.{key}={example}.",
        )


def require_devices(config: CommonConfig) -> None:
    """Check that the nodes have a device for every process."""
    hardware, num_nodes = config.hardware, config.launch.num_nodes
    size, devices = world_size(config.parallel), hardware.devices_per_node
    require(
        hardware.is_cpu or size <= num_nodes * devices,
        f"parallel={config.parallel.name} has {size} processes, but launch.num_nodes={num_nodes} of hardware="
        f"{hardware.name} has {num_nodes * devices} devices; use launch.num_nodes={-(-size // devices)} or a smaller "
        "layout.",
    )


def validate_inference(config: CommonConfig, script: str) -> None:
    """Check that every process has all layers and all tokens, which scoring and decoding need."""
    parallel, layouts = config.parallel, f"{script} runs under data and tensor layouts"
    require(
        not is_search(config),
        f"plan=search ranks layouts of a training run, but {script} trains nothing; use plan=true.",
    )
    require(
        parallel.pipeline == 1,
        f"parallel.pipeline={parallel.pipeline} (parallel={parallel.name}): {layouts}; use parallel=tp2 or a "
        "different layout with parallel.pipeline=1.",
    )
    require(
        not parallel.sequence_parallel,
        f"parallel.sequence_parallel=true (parallel={parallel.name}): {layouts}; use parallel.sequence_parallel=false.",
    )
    require(
        not config.tokenizer.extend,
        f"tokenizer.extend=true adds rows to the embedding that must be trained, but {script} trains nothing; use "
        "train.py, and load= the checkpoint that it writes.",
    )


def validate_generation(generation: GenerationConfig) -> None:
    """Check how text is decoded; single values too, for callers that compose no configuration."""
    check_values(generation, "generation.")
    require(
        generation.min_new_tokens <= generation.max_new_tokens,
        f"generation.min_new_tokens={generation.min_new_tokens} exceeds generation.max_new_tokens="
        f"{generation.max_new_tokens}; use a smaller generation.min_new_tokens.",
    )
    if generation.draft is not None or generation.draft_ngram:
        validate_draft(generation)
    sampling = [key for key in ("temperature", "top_k", "top_p") if getattr(generation, key)]
    require(
        generation.do_sample is not False or not sampling,
        f"generation.do_sample=false decodes greedily, so generation.{', generation.'.join(sampling)} "
        "would have no effect; drop them or use generation.do_sample=true.",
    )
    require(
        not (generation.do_sample and generation.temperature == 0),
        "generation.temperature=0 is greedy decoding; drop generation.do_sample=true or raise the temperature.",
    )


def validate_draft(generation: GenerationConfig) -> None:
    """Check that decoding takes the likeliest tokens, because only those are compared with a draft."""
    fixes = {
        "temperature": not generation.temperature,
        "top_k": not generation.top_k or generation.temperature == 0,
        "top_p": not generation.top_p or generation.temperature == 0,
        "do_sample": not generation.do_sample,
        "repetition_penalty": generation.repetition_penalty == 1.0,
        "min_new_tokens": generation.min_new_tokens == 0,
    }
    wrong = [f"generation.{key}={getattr(generation, key)}" for key, is_right in fixes.items() if not is_right]
    key, off = ("draft_ngram", 0) if generation.draft is None else ("draft", "null")
    require(
        not wrong,
        f"generation.{key}={getattr(generation, key)} decodes greedily, so that drafts change no text; drop "
        f"{', '.join(wrong)}, or use generation.{key}={off}.",
    )
    require(
        generation.draft is None or not generation.draft_ngram,
        f"generation.draft_ngram={generation.draft_ngram} drafts from the text, generation.draft={generation.draft} by "
        "a model; use generation.draft_ngram=0 or generation.draft=null.",
    )


def validate_train(config: TrainConfig) -> None:
    """Check the configuration of `train.py` across fields; its task checks the rest (`gpt2x.tasks.registry`)."""
    validate_common(config)
    validate_model(config.model)
    validate_generation(config.generation)
    require(
        config.generation.draft is None,
        f"generation.draft={config.generation.draft} is for predict.py; train.py needs generation.draft=null.",
    )
    require(
        not config.generation.draft_ngram,
        f"generation.draft_ngram={config.generation.draft_ngram} is for predict.py; train.py needs "
        "generation.draft_ngram=0.",
    )
    trainer = config.trainer
    require(
        trainer.early_stopping_patience is None or trainer.eval_every_steps is not None,
        f"trainer.early_stopping_patience={trainer.early_stopping_patience} counts evaluations, but "
        "trainer.eval_every_steps=null evaluates only at the end; give trainer.eval_every_steps=STEPS.",
    )
    require(
        trainer.max_steps is not None or trainer.max_epochs is not None,
        "trainer.max_steps and trainer.max_epochs are both null; give one of them.",
    )
    validate_layout(config.parallel, config.model)
    validate_mode(config)
    validate_lora(config)
    validate_batch(config.parallel, trainer)
    require(
        trainer.seq_len <= config.model.max_seq_len,
        f"trainer.seq_len={trainer.seq_len} exceeds model.max_seq_len={config.model.max_seq_len}: "
        f"use trainer.seq_len={config.model.max_seq_len} or less.",
    )
    validate_tracker(config.tracker)
    validate_schedule(config.schedule, trainer.max_steps)
    validate_profile(trainer, 0, trainer.max_steps)
    validate_inspection(config)
    require(
        config.load is not None or config.resume is not None or not config.task.requires_load or is_plan(config),
        f"task={config.task.name} starts from trained weights; give load=DIR (a gpt2x checkpoint or a Hugging Face "
        "directory), or use task=pretrain.",
    )


def validate_tracker(tracker: TrackerConfig) -> None:
    """Check that a model that is to be logged has a tracker for it, and a name that its registry takes."""
    name = tracker.registered_model
    require(
        not tracker.log_model or "mlflow" in (tracker.name, *tracker.also),
        f"tracker.log_model=true logs an MLflow model, but tracker={tracker.name}; use tracker=mlflow, or write the "
        "model later: gpt2x convert --to mlflow --output DIR RUN.",
    )
    require(
        name is None or tracker.log_model,
        f"tracker.registered_model={name} registers the model of tracker.log_model=true, which is false; give both.",
    )
    require(
        name is None or (bool(name.strip()) and not set("/:") & set(name)),
        f"tracker.registered_model={name!r}: MLflow takes no empty name and none with / or :; give a different one.",
    )


def validate_mode(config: TrainConfig) -> None:
    """Check that nothing is asked of PyNative that MindSpore rejects there: a recomputed cell that takes a tuple."""
    model, parallel = config.model, config.parallel
    adapter_dropout = 0 if config.lora.rank is None else config.lora.dropout
    require(
        config.hardware.mode == "graph"
        or parallel.recompute != "block"
        or parallel.splits_weights
        or not any((model.dropout, model.embedding_dropout, model.attention_dropout, adapter_dropout)),
        "hardware.mode=pynative: MindSpore computes no blocks again there that draw dropout; use parallel.recompute="
        "attention, parallel.zero_stage=3, no dropout, or hardware.mode=graph.",
    )


def validate_lora(config: TrainConfig) -> None:
    """Check adapters: the scale, the targets, and what they stand beside."""
    lora, parallel = config.lora, config.parallel
    if lora.rank is None:
        require(
            not config.adapters,
            f"adapters=[{','.join(config.adapters)}] continues the training of an adapter, which needs lora=; to train "
            "all weights instead, merge it first (gpt2x convert --merge).",
        )
        return
    require(lora.alpha is not None, "lora.alpha=null: give the scale of the adapters, such as lora.alpha=16.")
    modules = adapted_modules(lora, config.model.num_layers)
    layers = {int(name.split(".")[1]) for name in modules}
    for stage in range(parallel.pipeline):
        of_stage = stage_layers(config.model.num_layers, parallel.pipeline, stage)
        require(
            not layers.isdisjoint(of_stage),
            f"lora.targets=[{','.join(lora.targets)}] adapts nothing in layers {of_stage.start} to {of_stage.stop - 1},"
            f" so stage {stage} of parallel.pipeline={parallel.pipeline} would train nothing; use a layout with "
            "parallel.pipeline=1, or targets in the layers of every stage.",
        )
    require(
        len(config.adapters) <= 1,
        f"adapters=[{','.join(config.adapters)}]: training continues from one adapter; give one of them.",
    )
    require(
        config.load is not None or config.resume is not None or is_plan(config),
        f"lora={lora.name} trains adapters beside frozen weights, and load=null leaves these random; give load=DIR "
        "(a gpt2x checkpoint or a Hugging Face directory).",
    )


def is_plan(config: CommonConfig) -> bool:
    """Return whether a run is only predicted."""
    return config.plan.lower() != "false"


def is_search(config: CommonConfig) -> bool:
    """Return whether layouts are searched for."""
    return config.plan.lower() == "search"


def validate_schedule(schedule: ScheduleConfig, max_steps: int | None) -> None:
    """Check the warmup."""
    require(
        schedule.warmup_steps is None or schedule.warmup_ratio is None,
        f"schedule.warmup_steps={schedule.warmup_steps} and schedule.warmup_ratio={schedule.warmup_ratio} "
        "are both set; set one of them to null.",
    )
    if max_steps is not None:
        validate_warmup(schedule, max_steps)


def validate_warmup(schedule: ScheduleConfig, total_steps: int) -> None:
    """Check that warmup ends before the run does. (The reference warms up for 2000 steps on WikiText-2, longer than
    its runs.)
    """
    steps = schedule.num_warmup_steps(total_steps)
    key = "warmup_ratio" if schedule.warmup_steps is None else "warmup_steps"
    require(
        steps == 0 or steps < total_steps,
        f"schedule.{key}={getattr(schedule, key)} is not below the run's {total_steps} steps, so no step "
        "would be left after the warmup; use fewer, or schedule.warmup_steps=null schedule.warmup_ratio=0.1.",
    )


def validate_profile(trainer: TrainerConfig, steps_done: int, total_steps: int | None) -> None:
    """Check that the profiled updates are some that this start makes, after the first one, which compiles.

    Args:
        trainer: the window, and where the run stops.
        steps_done: updates that an earlier start has made.
        total_steps: the last update; None: not known yet.
    """
    if trainer.profile_steps is None:
        return
    key = f"trainer.profile_steps=[{','.join(map(str, trainer.profile_steps))}]"
    require(len(trainer.profile_steps) == 2, f"{key}: give the first and the last update, such as [11,13].")
    first, last = trainer.profile_steps
    require(first <= last, f"{key} ends before it begins; use [{last},{first}].")
    begin = steps_done + 2
    require(
        first >= begin,
        f"{key}: this start continues after step {steps_done} and compiles in its first update; begin at {begin} or "
        "later.",
    )
    ends = [step for step in (trainer.stop_after_steps, total_steps) if step is not None]
    require(
        not ends or last <= min(ends),
        f"{key}: the run ends after step {min(ends, default=0)}; end the window there or earlier, or train longer.",
    )


def validate_evaluate(config: EvaluateConfig) -> None:
    """Check the configuration of `evaluate.py` across fields."""
    validate_common(config)
    validate_inference(config, "evaluate.py")
    require(
        not config.tracker.log_model and config.tracker.registered_model is None,
        "tracker.log_model and tracker.registered_model are for train.py; evaluate.py trains nothing. Write a model "
        "with gpt2x convert --to mlflow --output DIR LOAD.",
    )
    require(
        config.load is not None,
        "load=null: evaluate.py evaluates trained weights, never random ones; give load=DIR "
        "(a gpt2x checkpoint or a Hugging Face directory).",
    )
    require(
        bool(config.evaluation.protocols),
        "evaluation.protocols=[] is empty; give some of 'evaluation.protocols=[reference,strided,word]'.",
    )


def validate_predict(config: PredictConfig) -> None:
    """Check the configuration of `predict.py` across fields."""
    validate_common(config)
    validate_inference(config, "predict.py")
    validate_generation(config.generation)
    require(
        config.load is not None,
        "load=null: predict.py needs trained weights; give load=DIR (a gpt2x checkpoint or a Hugging Face directory).",
    )
    require(
        config.adapter is None or bool(config.adapters),
        f"adapter={config.adapter} chooses among adapters, but adapters=[]; give adapters=[DIR].",
    )
    require(
        (config.prompts is None) != (config.prompts_file is None),
        f"prompts={config.prompts} and prompts_file={config.prompts_file}: give exactly one of them, as "
        "'prompts=[\"Once upon a time\"]' or prompts_file=FILE.",
    )
