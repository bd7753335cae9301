"""The keys of the configuration: types, meanings, bounds and what they change (imports no mindspore).

Values live in `conf/*.yaml`. A composed Hydra configuration becomes these dataclasses once; everything below the
entry points receives the dataclasses and never sees Hydra or OmegaConf. A key without a default is set by the option
that is chosen, so a default stands in exactly one place. `gpt2x.config.metadata` explains `key`. HOST and LAYOUT
keys may change when a run is resumed, RUN and STEP keys may not.

A new key needs a default: configurations of older checkpoints lack it and compare as the default.
"""

# ruff: noqa: RUF009  (`key` and `group` return fields)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from gpt2x.config.metadata import HOST, LAYOUT, NAME, RUN, SETTINGS, STEP, group, key
from gpt2x.config.schema_devices import HardwareConfig, LaunchConfig, ParallelConfig
from gpt2x.config.schema_optimizer import OptimizerConfig, ScheduleConfig
from gpt2x.config.schema_sweeps import LrFindConfig, SweepConfig

STATS = ("weights", "gradients", "updates", "activations", "attention")  # of trainer.stats
MAX_WIDTH, MAX_ROWS = 1 << 20, 10_000_000  # of a model: a size beyond is a mistake, and loops over it would not end


@dataclass
class TaskConfig:
    """What a run trains for. Its name is also MLflow's experiment."""

    name: str = key(NAME, STEP)
    requires_load: bool = key("start from load=, never from random weights", STEP)
    objective: str = key("what is learnt", STEP, "language_modeling", extensions="gpt2x.tasks")
    settings: dict[str, Any] = key(SETTINGS, STEP, {})


@dataclass
class ModelConfig:
    """The shape of GPT-2. Hugging Face's names are in brackets."""

    name: str = key(NAME, HOST)
    num_layers: int = key("transformer blocks [n_layer]", STEP, at_least=1, at_most=4096)
    num_heads: int = key("attention heads per block; divides hidden_size [n_head]", STEP, at_least=1, at_most=MAX_WIDTH)
    hidden_size: int = key("width of the residual stream [n_embd]", STEP, at_least=1, at_most=MAX_WIDTH)
    max_seq_len: int = key("learned positions [n_positions]", STEP, at_least=1, at_most=MAX_ROWS, unit="tokens")
    vocab_size: int | None = key("rows of the embedding", STEP, 50257, at_least=1, at_most=MAX_ROWS,
                                 null="the tokenizer's size")  # fmt: skip
    ffn_size: int | None = key("width inside the feed-forward layer [n_inner]", STEP, None, at_least=1,
                               at_most=4 * MAX_WIDTH, null="4 * hidden_size")  # fmt: skip
    activation: str = key("of the feed-forward layer", STEP, "gelu_new", choices=("gelu_new", "gelu", "fast_gelu"))
    layer_norm_eps: float = key("added to the variance [layer_norm_epsilon]", STEP, 1e-5, above=0)
    dropout: float = key("on embeddings, attention weights and both residual branches", STEP, 0.1, at_least=0, below=1)
    embedding_dropout: float | None = key("on embeddings [embd_pdrop]", STEP, None, at_least=0, below=1, null="dropout")
    attention_dropout: float | None = key("on attention weights [attn_pdrop]", STEP, None, at_least=0, below=1,
                                          null="dropout")  # fmt: skip
    initializer_range: float = key("standard deviation of random weights; MindFormers uses 0.01", STEP, 0.02, above=0)
    scale_residual_init: bool = key(
        "scale residual projections by 1/sqrt(2 * num_layers), as GPT-2's paper", STEP, True
    )
    tie_embeddings: bool = key("the head is the embedding's transpose [tie_word_embeddings]", STEP, True)
    pad_vocab_multiple: int = key("pad the embedding's rows to a multiple; padding rows are never chosen", LAYOUT, 1,
                                  at_least=1)  # fmt: skip
    labels: list[str] | None = key("a classifier's classes in the order of its logits [id2label]", STEP, None,
                                   null="the data's, if the task has classes")  # fmt: skip

    @property
    def is_classifier(self) -> bool:
        """True if the head scores classes of texts, False if it scores tokens."""
        return bool(self.labels)

    @property
    def has_unnamed_labels(self) -> bool:
        """True if the classes have only transformers' default names: LABEL_0, LABEL_1 and so on."""
        labels = self.labels or []
        return bool(labels) and labels == [f"LABEL_{i}" for i in range(len(labels))]


@dataclass
class LoraConfig:
    """Low-rank adapters beside frozen weights (Hu et al., arXiv:2106.09685), see docs/lora.md."""

    name: str = key(NAME, STEP)
    rank: int | None = key(
        "rank of the adapters: columns of A and rows of B in W + A B",
        STEP,
        at_least=1,
        null="no adapters, the whole model is trained",
    )
    alpha: float | None = key("the product B A is multiplied with alpha / rank", STEP, above=0, null="no adapters")
    dropout: float = key("on the input of each adapter", STEP, 0.1, at_least=0, below=1)
    targets: list[str] = key(
        "modules or patterns: q, k, v, c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj", STEP, ["q", "v"]
    )
    rank_stabilized: bool = key(
        "multiply with alpha / sqrt(rank) instead (Kalajdzievski, arXiv:2312.03732)", STEP, False
    )


@dataclass
class TokenizerConfig:
    """A tokenizer that is read from files, or trained on the corpus."""

    name: str = key(NAME, STEP)
    kind: str = key("how a tokenizer is trained", STEP, "byte_level_bpe", extensions="gpt2x.data.tokenizers")
    path: str | None = key("directory with vocab.json and merges.txt or tokenizer.json, or hub repository", STEP, None,
                           is_path=True, null="train one on the corpus, or use the checkpoint's")  # fmt: skip
    vocab_size: int | None = key(
        "of a trained tokenizer", STEP, None, unit="tokens", null="the tokenizer is not trained"
    )
    eos_token: str = key("ends each document and starts an empty prompt", STEP, "<|endoftext|>")
    extend: bool = key(
        "train: path's tokenizer may add tokens to that of load=, whose embedding then grows", STEP, False
    )
    settings: dict[str, Any] = key(SETTINGS, STEP, {})


@dataclass
class DatasetConfig:
    """Where text comes from. A .mindrecord path is used as it is."""

    name: str = key(NAME, STEP)
    corpus: str = key("the source that reads it (docs/data.md)", STEP, extensions="gpt2x.data.sources")
    path: str | None = key("file or folder with all texts, split by split_seed; or the corpus' folder", STEP, None,
                           is_path=True,
                           null="a corpus that comes with gpt2x or is downloaded, or train_path")  # fmt: skip
    train_path: str | None = key(
        "file or folder with only training texts", STEP, None, is_path=True, null="a part of dataset.path"
    )
    val_path: str | None = key(
        "file or folder with only validation texts", STEP, None, is_path=True, null="a part of dataset.path"
    )
    url: str | None = key("where to download the corpus if there is no path", STEP, None, null="no download")
    sha256: str | None = key("of the download", STEP, None, null="accept any download and print its sha256")
    text_column: str = key("column with the text, in jsonl, csv and parquet files", STEP, "text")
    val_fraction: float = key("share of the documents for validation", STEP, 0.1, above=0, below=1)
    split_seed: int = key("draws the documents for validation", STEP, 0)
    protocol: str = key("how the corpus is cleaned: clean, or reference of wikitext2 (docs/data.md)", STEP, "clean")
    keep_last_passage: bool = key("protocol=reference: keep the last passage, which the reference drops", STEP, False)
    columns: list[str] | None = key("labelled: names of the columns", STEP, None, null="the table's header line")
    text_columns: list[str] | None = key('labelled: columns that make the text, joined by ". "', STEP, None,
                                         null="text_column")  # fmt: skip
    label_column: str = key("labelled: column with the class", STEP, "label")
    label_names: dict[str, str] | None = key("labelled: name of each class, by its value", STEP, None,
                                             null="the values are the names")  # fmt: skip
    line_break: str | None = key("labelled: markup that stands for a newline", STEP, None, null="none")
    archive_folder: str = key("labelled: folder of the files in the download", STEP, "")
    template: str = key(
        "instructions: alpaca, or a YAML file of your own (docs/instructions.md)", STEP, "alpaca", is_path=True
    )
    packing: bool = key("instructions: several examples per row, which do not see each other", STEP, True)
    skip_empty: bool = key("instructions: leave out rows with an empty output instead of rejecting them", STEP, False)
    settings: dict[str, Any] = key(SETTINGS, STEP, {})


@dataclass
class TrainerConfig:
    """The training loop. If both are set, max_steps wins over max_epochs."""

    max_steps: int | None = key("updates", RUN, None, at_least=1, null="max_epochs")
    max_epochs: int | None = key("passes over the training rows", RUN, at_least=1, null="max_steps")
    global_batch_size: int | None = key("sequences per update", STEP, None, at_least=1,
                                        null="4, or the next multiple of replicas x micro batches")  # fmt: skip
    micro_batch_size: int | None = key("sequences per forward pass and replica", LAYOUT, at_least=1,
                                       null="from parallel.micro_batches, or the whole batch")  # fmt: skip
    seq_len: int = key("length of a sequence", STEP, at_least=1, unit="tokens")
    grad_clip: float | None = key("largest global norm of the gradients", STEP, 1.0, above=0, null="off")
    frozen: list[str] = key("tensors or patterns that are not trained: wte.weight, h.[0-3].*", STEP, [])
    log_every_steps: int = key("steps per line, on a terminal that is not interactive", HOST, 10, at_least=1)
    eval_every_steps: int | None = key("steps between validations", HOST, None, at_least=1, null="only at the end")
    max_eval_rows: int | None = key("rows per validation, drawn from the whole split, the same ones for every run",
                                    HOST, None, at_least=1, null="the whole split")  # fmt: skip
    sample_every_steps: int | None = key("steps between samples", HOST, None, at_least=1, null="with every validation")
    sample_prompts: list[str] = key('one sample each; "" starts from BOS, others use the template, if any', HOST, [""])
    checkpoint_every_steps: int | None = key(
        "steps between checkpoints", HOST, None, at_least=1, null="only at the end"
    )
    checkpoint_every_minutes: float | None = key("save work that is as old, whatever the steps", HOST, 30.0, above=0,
                                                 unit="minutes", null="never")  # fmt: skip
    checkpoint_async: bool = key(
        "write checkpoints beside training, from a copy in memory; false: training waits", HOST, True
    )
    checkpoint_retries: int = key("how often a checkpoint that cannot be written is tried again", HOST, 2, at_least=0)
    checkpoint_retry_s: float = key("the pause before that", HOST, 5.0, at_least=0, unit="s")
    checkpoint_copy: str | None = key("a second directory, to which each checkpoint is copied", HOST, None,
                                      is_path=True, null="no copies")  # fmt: skip
    keep_last: int = key("how many of the newest checkpoints to keep", HOST, 2, at_least=1)
    keep_best: bool = key("write a checkpoint whenever best_metric improves, and keep the best", HOST, True)
    best_metric: str = key("a metric of the task's validation, such as val/loss or val/accuracy", RUN, "val/loss")
    early_stopping_patience: int | None = key("end after this many validations in a row without a better one", HOST,
                                              None, at_least=1, null="off")  # fmt: skip
    stop_after_steps: int | None = key("end here, after a checkpoint; the schedule is unchanged", HOST, None,
                                       at_least=1, null="off")  # fmt: skip
    loss_scale_init: float = key("fp16: the first loss scale", STEP, 65536.0, above=0)
    loss_scale_factor: float = key("fp16: up after a window of finite updates, down after one that is not", STEP, 2.0,
                                   at_least=1)  # fmt: skip
    loss_scale_window: int = key("fp16: finite updates in a row", STEP, 1000, above=0)
    max_train_rows: int | None = key("training rows to use, from the start of the split", RUN, None, at_least=1,
                                     null="all")  # fmt: skip
    required_loss: float | None = key("end when train/loss is as low; fail if it never is", HOST, None, null="off")
    stop_on_nonfinite: bool = key(
        "end at the first loss or gradient that is not finite, and name its origin (docs/debugging.md)", HOST, False
    )
    stats_every_steps: int | None = key("steps between statistics of layers (docs/debugging.md)", HOST, None,
                                        at_least=1, null="off")  # fmt: skip
    stats: list[str] = key("which statistics", HOST, list(STATS), choices=STATS)
    stats_per: str = key("one norm per layer or per tensor", HOST, "layer", choices=("layer", "tensor"))
    max_skipped_steps: int = key("end after more updates in a row that were left out or whose loss has exploded", HOST,
                                 10, at_least=0)  # fmt: skip
    explosion_factor: float | None = key("a loss above this multiple of the loss of guessing has exploded", HOST, 3.0,
                                         above=1, null="off")  # fmt: skip
    spike_window: int | None = key("leave out an update whose loss or gradient norm is far above those of as many "
                                   "updates before it", RUN, None, at_least=2, null="off")  # fmt: skip
    spike_sigma: float = key("how far: standard deviations above their mean", RUN, 6.0, above=0)
    profile_steps: list[int] | None = key("first and last update to profile, such as [11,13] (docs/training.md)", HOST,
                                          None, at_least=1, null="off")  # fmt: skip
    compile_cache: bool = key("CPU: keep the compiled update in paths.cache for the next start", HOST, True)

    @property
    def batch(self) -> int:
        """Return the sequences per update of a typed configuration, which always has them."""
        assert self.global_batch_size is not None
        return self.global_batch_size


@dataclass
class GenerationConfig:
    """Decoding. It samples if temperature, top_k or top_p is set, or if do_sample is true."""

    max_new_tokens: int = key("most tokens of a completion", HOST, 64, at_least=1)
    min_new_tokens: int = key("EOS is not chosen before", HOST, 0, at_least=0)
    do_sample: bool | None = key("draw tokens; false takes the likeliest", HOST, None,
                                 null="true if temperature, top_k or top_p is set")  # fmt: skip
    temperature: float | None = key("divides the logits; 0 is greedy", HOST, None, at_least=0, null="1")
    top_k: int | None = key("only the k likeliest tokens; 0 for all", HOST, None, at_least=0, null="all")
    top_p: float | None = key("only the likeliest tokens that have this probability together", HOST, None, above=0,
                              at_most=1, null="all")  # fmt: skip
    repetition_penalty: float = key("over prompt and completion (Keskar et al., arXiv:1909.05858); 1 is off", HOST, 1.0,
                                    above=0)  # fmt: skip
    eos_ids: list[int] | None = key("tokens that end a completion", HOST, None, null="the model's")
    seed: int | None = key("of the draws", HOST, None, null="the run's seed")
    batch_size: int = key("prompts decoded together; when one ends, the next takes its place", HOST, 8, at_least=1)
    draft: str | None = key("directory, as load=, of a smaller model with the same tokenizer for drafts", HOST, None,
                            is_path=True, null="off")  # fmt: skip
    draft_ngram: int = key("drafts what followed the text's last tokens, up to so many, where they stood before; 0 is "
                           "off", HOST, 0, at_least=0)  # fmt: skip
    draft_tokens: int = key("tokens drafted at a time", HOST, 4, at_least=1)
    weights: str = key("CPU: the form in which a step reads the weights (docs/generation.md)", HOST, "fp32",
                       choices=("fp32", "bf16", "int8", "int4"))  # fmt: skip
    prompt_cache: bool = key("CPU: compute only once what a prompt has in common with the one before, at its beginning",
                             HOST, False)  # fmt: skip
    cache: str = key("CPU: the type of cached keys and values (docs/generation.md)", HOST, "fp32",
                     choices=("fp32", "bf16"))  # fmt: skip


@dataclass
class EvaluationConfig:
    """Protocols of perplexity, defined in docs/evaluation.md."""

    protocols: list[str] = key("which to compute", HOST, ["reference", "strided", "word"],
                               choices=("reference", "strided", "word"))  # fmt: skip
    split: str = key("of the corpus", HOST, "val", choices=("train", "val"))
    stride: int | None = key("strided: tokens between windows", HOST, None, at_least=1, null="half of seq_len")
    seq_len: int | None = key(
        "length of a window", HOST, None, at_least=1, unit="tokens", null="the model's max_seq_len"
    )
    batch_size: int = key("windows per forward pass; strided and word do not depend on it", HOST, 8, at_least=1)
    bootstrap_resamples: int | None = key("draws for 95 % intervals, by the run's seed; 0: no intervals", HOST, 1000,
                                          at_least=0, null="no intervals")  # fmt: skip


@dataclass
class TrackerConfig:
    """Mirrors of metrics.jsonl, which is always written to the run directory."""

    name: str = key("the tracker", HOST, extensions="gpt2x.tracking.trackers")
    also: list[str] = key("further trackers of the same run", HOST, [], extensions="gpt2x.tracking.trackers")
    uri: str | None = key("where it mirrors to", HOST, None, is_path=True, null="an sqlite file in paths.outputs")
    experiment: str | None = key("group of runs", HOST, None, null="task.name")
    run_name: str | None = key("name of the run; of a sweep's runs, before what they vary", HOST, None,
                               null="model, dataset and overrides; of a sweep's runs, what they vary")  # fmt: skip
    tags: dict[str, Any] = key("tags of your own, as tags.KEY=VALUE", HOST, {})
    description: str | None = key("text that is shown above the run", HOST, None, null="none")
    log_model: bool = key("MLflow gets the best checkpoint, else the newest, at the end of a training as a model that "
                          "`mlflow models serve` serves", HOST, False)  # fmt: skip
    registered_model: str | None = key("name under which log_model registers it", HOST, None, null="not registered")
    system_metrics: bool = key("MLflow and W&B sample CPU, memory and disk", HOST, True)
    settings: dict[str, Any] = key(SETTINGS, HOST, {})


@dataclass
class PathsConfig:
    """Directories. Only this group, tracker and hydra may read the environment."""

    outputs: str = key("run directories and the MLflow store", HOST, is_path=True)
    cache: str = key("prepared data, trained tokenizers, downloads, kernels", LAYOUT, is_path=True)


@dataclass
class CommonConfig:
    """Keys that train, evaluate and predict have."""

    seed: int = key("of weights, order of batches, dropout, samples and the bootstrap's draws", RUN, 0, at_least=0)
    plan: str = key("true: only predict memory and speed; search: rank layouts of training that fit", HOST, "false",
                    choices=("false", "true", "search"))  # fmt: skip
    load: str | None = key("a gpt2x checkpoint, a Hugging Face directory, or a name of the hub, as gpt2", STEP, None,
                           is_path=True, null="random weights")  # fmt: skip
    adapters: list[str] = key(
        "adapters for the model of load=: runs of lora=, their checkpoints, PEFT directories", STEP, [], is_path=True
    )
    tokenizer: TokenizerConfig = group(TokenizerConfig)
    hardware: HardwareConfig = group(HardwareConfig)
    parallel: ParallelConfig = group(ParallelConfig)
    launch: LaunchConfig = group(LaunchConfig)
    paths: PathsConfig = group(PathsConfig)


@dataclass
class TrackedConfig(CommonConfig):
    """Keys that train and evaluate have."""

    tracker: TrackerConfig = group(TrackerConfig)


@dataclass
class TrainConfig(TrackedConfig):
    """Train GPT-2 from random weights or from load=, the whole model or adapters beside it."""

    resume: str | None = key("auto: the newest run like this one, else it starts; or a directory", HOST, None,
                             is_path=True, null="start a new run")  # fmt: skip
    num_devices: int | None = key("plan=search: how many devices", HOST, None, at_least=1, null="the layout's")
    task: TaskConfig = group(TaskConfig)
    model: ModelConfig = group(ModelConfig)
    lora: LoraConfig = group(LoraConfig)
    dataset: DatasetConfig = group(DatasetConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    schedule: ScheduleConfig = group(ScheduleConfig)
    trainer: TrainerConfig = group(TrainerConfig)
    generation: GenerationConfig = group(GenerationConfig)
    lr_find: LrFindConfig = group(LrFindConfig)
    sweep: SweepConfig = group(SweepConfig)


@dataclass
class EvaluateConfig(TrackedConfig):
    """Evaluate load= on a data set, with the checkpoint's model and tokenizer."""

    dataset: DatasetConfig = group(DatasetConfig)
    evaluation: EvaluationConfig = group(EvaluationConfig)
    output: str | None = key("file for the results", HOST, None, is_path=True,
                             null="results.json in the run directory")  # fmt: skip


@dataclass
class PredictConfig(CommonConfig):
    """Complete prompts, or classify them, with load=."""

    prompts: list[str] | None = key("the prompts", HOST, None, null="prompts_file")
    adapter: str | None = key(
        "which of several adapters: the name of its run or directory", HOST, None, is_path=True, null="the only one"
    )
    prompts_file: str | None = key(".txt: one prompt per line; .jsonl: keys prompt, or instruction and input", HOST,
                                   None, is_path=True, null="prompts")  # fmt: skip
    template: str | None = key("text around prompts: checkpoint for that of the training, a name or a file", HOST,
                               "checkpoint", is_path=True, null="none")  # fmt: skip
    output: str | None = key('JSONL file, "-" for stdout', HOST, None, is_path=True,
                             null="text on the terminal")  # fmt: skip
    generation: GenerationConfig = group(GenerationConfig)


@dataclass
class PrepareConfig:
    """Write a data set as MindRecord files."""

    dataset: DatasetConfig = group(DatasetConfig)
    tokenizer: TokenizerConfig = group(TokenizerConfig)
    paths: PathsConfig = group(PathsConfig)
    seq_len: int = key("length of a sequence; rows have seq_len + 1 columns", HOST, MISSING, unit="tokens")
    output: str | None = key("directory for the MindRecord files", HOST, None, is_path=True, null="the cache")
