"""The typed configuration (floor 0; imports no mindspore). `gpt2x.config.rules` has the cross-field checks.

Values live in `conf/*.yaml`, types live here. `to_object` turns a composed Hydra config into these dataclasses
once; everything below the entry scripts receives the dataclasses and never sees Hydra or OmegaConf.
A field without a default is set by the YAML option that is chosen; a default stands in exactly one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class TaskConfig:
    """What a run is for; `name` is also the MLflow experiment."""

    name: str = MISSING  # pretrain | finetune | classification | instruction
    requires_load: bool = MISSING  # start from `load=`, never from random weights
    objective: str = "language_modeling"  # language_modeling | classification | instruction


@dataclass
class ModelConfig:
    """GPT-2's shape. Names as in docs/design/architecture.md; Hugging Face's name in brackets."""

    name: str = MISSING
    num_layers: int = MISSING  # transformer blocks [n_layer]
    num_heads: int = MISSING  # attention heads a block; divides hidden_size [n_head]
    hidden_size: int = MISSING  # width of the residual stream [n_embd]
    max_seq_len: int = MISSING  # learned positions [n_positions]
    vocab_size: int | None = 50257  # null: the tokenizer's
    ffn_size: int | None = None  # [n_inner]; null: 4 * hidden_size
    activation: str = "gelu_new"  # gelu_new | gelu | fast_gelu
    layer_norm_eps: float = 1e-5  # added to the variance [layer_norm_epsilon]
    dropout: float = 0.1  # on embeddings, attention weights and both residual branches
    embedding_dropout: float | None = None  # [embd_pdrop]; null: dropout
    attention_dropout: float | None = None  # [attn_pdrop]; null: dropout
    initializer_range: float = 0.02  # the reference uses 0.01
    scale_residual_init: bool = True  # residual projections by 1/sqrt(2 * num_layers), as GPT-2's paper
    tie_embeddings: bool = True  # the head is the embedding's transpose [tie_word_embeddings]
    pad_vocab_multiple: int = 1  # rows of the embedding are padded to a multiple; padded logits are never chosen
    labels: list[str] | None = None  # a classifier's, in the order of its logits [id2label]; the data sets them


@dataclass
class TokenizerConfig:
    """`path` names a directory (vocab.json + merges.txt, or tokenizer.json) or a hub repository; null: train BPE."""

    name: str = MISSING
    path: str | None = None  # directory or hub repository; null: train on the corpus
    kind: str = "byte_level_bpe"  # of a trained tokenizer: a file in gpt2x/data/tokenizers
    vocab_size: int | None = None  # of a trained tokenizer
    eos_token: str = "<|endoftext|>"  # ends each document, starts an empty prompt
    extend: bool = False  # train: path's tokenizer may add tokens to that of load=, whose embedding then grows


@dataclass
class DatasetConfig:
    """Where text comes from. A `.mindrecord` path is used as it is."""

    name: str = MISSING
    corpus: str = MISSING  # the source: a file in gpt2x/data/sources
    path: str | None = None  # a file or folder holding all the text (split by split_seed), or a corpus' own folder
    train_path: str | None = None  # training text alone
    val_path: str | None = None  # validation text alone
    url: str | None = None  # where the corpus is downloaded from when no path is given
    sha256: str | None = None  # of the download
    text_column: str = "text"  # of jsonl, csv and parquet
    val_fraction: float = 0.1  # share of the documents held out for validation
    split_seed: int = 0  # draws the documents held out
    protocol: str = "clean"  # clean | reference (wikitext2 only), see docs/data.md
    keep_last_passage: bool = False  # protocol=reference: keep the passage that the reference loses
    columns: list[str] | None = None  # labelled: names of the columns of a table without a header line
    text_columns: list[str] | None = None  # labelled: several that make the text, joined by ". "; null: text_column
    label_column: str = "label"  # labelled: the column with the class
    label_names: dict[str, str] | None = None  # labelled: names of the classes by their value; null: the values
    line_break: str | None = None  # labelled: markup in a text that stands for a newline
    archive_folder: str = ""  # labelled: where the files lie in the download
    template: str = "alpaca"  # instructions: alpaca, or a YAML file of your own (docs/instructions.md)
    packing: bool = True  # instructions: several examples a row, apart from each other; false: one
    skip_empty: bool = False  # instructions: leave out rows with an empty output instead of rejecting them
    settings: dict[str, Any] = field(default_factory=dict)  # keys that only one source has, by its `Settings`


@dataclass
class ParallelConfig:
    """How a run is laid out over data * tensor * pipeline processes, one a device (docs/parallel.md)."""

    name: str = MISSING
    data: int = 1  # replicas of the model, each with its share of every batch
    tensor: int = 1  # processes that share every layer: heads, feed-forward columns, vocabulary
    pipeline: int = 1  # stages of consecutive layers
    micro_batches: int | None = None  # forward passes an update a replica; null: by trainer.micro_batch_size
    optimizer_shards: int = 1  # ZeRO-1: replicas that share the optimizer's states; divides data
    sequence_parallel: bool = False  # tensor > 1: layer norms and dropout on a share of the tokens
    vocab_parallel: bool = True  # tensor > 1: embedding, head and cross entropy on a share of the vocabulary
    recompute: str = "none"  # none | attention | block: activations recomputed in backward instead of kept


@dataclass
class LaunchConfig:
    """Where the processes of a parallel layout meet; one machine needs nothing of it."""

    address: str | None = None  # name or IP address of node 0; null: this machine (a single node only)
    port: int | None = None  # on node 0; null: a free one (a single node only)
    num_nodes: int = 1  # machines, each with the same number of processes
    node_rank: int = 0  # this machine's number
    timeout_s: int = 600  # how long a process waits for the others before it gives up


@dataclass
class HardwareConfig:
    """A device as the documentation of its maker states it; `source` says where."""

    name: str = MISSING
    device_target: str = MISSING  # CPU | Ascend
    precision: str = MISSING  # fp32 | fp16 | bf16
    memory_gb: float | None = MISSING  # of one device; null: the machine's
    peak_tflops: float | None = MISSING  # dense, at `precision`; null: a matmul measured at start
    devices_per_node: int = MISSING  # devices in one machine
    flash_attention: bool = MISSING  # the kernel is there
    source: str = MISSING
    native_kernels: bool = True  # CPU: gpt2x's own kernels; false: MindSpore's operators alone
    efficiency: float | None = None  # share of the peak that matrix products reach (docs/planning.md); null: not known
    memory_gb_per_s: float | None = None  # bandwidth of a device's memory; null: not known
    link_gb_per_s: float | None = None  # from a device to another of its node, each pair a link; null: not known
    network_gb_per_s: float | None = None  # from a device to other nodes; null: not known

    @property
    def is_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return self.device_target == "CPU"

    @property
    def backend(self) -> str:
        """The implementation of the operators: the name of a file in `gpt2x/ops`."""
        if not self.is_cpu:
            return self.device_target.lower()
        return "native" if self.native_kernels and self.precision == "fp32" else "composed"


@dataclass
class LoraConfig:
    """Low-rank adapters beside frozen weights (Hu et al., arXiv:2106.09685), see docs/lora.md."""

    name: str = MISSING
    rank: int | None = MISSING  # columns of A, rows of B; null: no adapters, the whole model is trained
    alpha: float | None = MISSING  # their product is multiplied with alpha / rank
    dropout: float = 0.1  # on what enters an adapter
    targets: list[str] = field(default_factory=lambda: ["q", "v"])  # modules or patterns: q, k, v, c_attn, c_proj, c_fc
    rank_stabilized: bool = False  # alpha / sqrt(rank) instead (Kalajdzievski, arXiv:2312.03732)


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101), states in fp32."""

    name: str = MISSING
    learning_rate: float = MISSING  # the schedule's peak
    beta1: float = 0.9  # decay of the mean of gradients
    beta2: float = 0.95  # decay of the mean of squared gradients
    eps: float = 1e-8  # added to the root of the mean square
    weight_decay: float = 0.1  # not on biases and layer norms
    bias_correction: bool = True  # the reference's Adam has none
    layer_decay: float | None = None  # each layer's rate is this share of the one's above it; null: one rate for all


@dataclass
class ScheduleConfig:
    """The learning rate over steps: warmup to optimizer.learning_rate, then decay to its final_ratio."""

    name: str = MISSING  # constant | linear | cosine | cosine_restarts | polynomial
    warmup_steps: int | None = None  # steps of linear warmup; null: none, or by warmup_ratio
    warmup_ratio: float | None = None  # of all steps; give one of the two
    final_ratio: float = 0.1  # last rate over peak rate
    num_cycles: int = 1  # of cosine_restarts
    power: float = 1.0  # of polynomial


@dataclass
class TrainerConfig:
    """The loop. `max_steps` rules where both are given; `max_epochs` counts where it is null."""

    max_steps: int | None = None  # optimizer updates; null: by max_epochs
    max_epochs: int | None = MISSING  # passes over the training blocks, where max_steps is null
    global_batch_size: int = MISSING  # sequences an update
    micro_batch_size: int | None = MISSING  # sequences a forward pass; null: by parallel.micro_batches
    seq_len: int = MISSING  # tokens a sequence
    grad_clip: float | None = 1.0  # global norm; null: off
    frozen: list[str] = field(default_factory=list)  # tensors or patterns that are not trained: wte.weight, h.[0-3].*
    log_every_steps: int = 10  # lines on a terminal that is not interactive
    eval_every_steps: int | None = None  # null: at the end
    max_eval_batches: int | None = None  # null: the whole validation split
    sample_every_steps: int | None = None  # null: with every evaluation
    sample_prompts: list[str] = field(
        default_factory=lambda: [""]
    )  # "" starts from EOS; others go into the template, if any
    checkpoint_every_steps: int | None = None  # null: at the end
    keep_last: int = 2  # newest checkpoints kept
    keep_best: bool = True  # keep, and write at once, the checkpoint of the best best_metric
    best_metric: str = "val/loss"  # val/loss | val/ppl; of a classifier val/loss | val/accuracy | val/f1 | val/mcc
    early_stopping_patience: int | None = None  # end after so many evaluations in a row without a better one
    stop_after_steps: int | None = None  # end early, after a checkpoint; the schedule is unchanged
    loss_scale_init: float = 65536.0  # fp16 only: the first loss scale
    loss_scale_factor: float = 2.0  # up after a window of finite updates, down after a non-finite one
    loss_scale_window: int = 1000  # finite updates in a row
    max_skipped_steps: int = 10  # non-finite gradients in a row before the run is ended
    compile_cache: bool = True  # CPU: keep the compiled update in paths.cache for the next start of the same model


@dataclass
class GenerationConfig:
    """Decoding. Sampling is on when temperature, top_k or top_p is given, or do_sample is true."""

    max_new_tokens: int = 64  # tokens a completion has at most
    min_new_tokens: int = 0  # EOS is not chosen before
    do_sample: bool | None = None  # null: when temperature, top_k or top_p is given
    temperature: float | None = None  # divides the logits; 0: greedy
    top_k: int | None = None  # only the k likeliest tokens; 0 or null: all
    top_p: float | None = None  # only the likeliest tokens that hold this probability together
    repetition_penalty: float = 1.0  # Keskar et al., arXiv:1909.05858; over prompt and completion
    eos_ids: list[int] | None = None  # null: the tokenizer's
    seed: int | None = None  # null: the run's seed
    batch_size: int = 8  # prompts decoded together; when one ends, the next takes its place
    draft: str | None = None  # a smaller model with the same tokenizer, for speculative decoding: as load; null: off
    draft_tokens: int = 4  # drafted at a time
    weights: str = "fp32"  # fp32 | bf16 | int8: what a step reads from memory, on the CPU (docs/generation.md)


@dataclass
class EvaluationConfig:
    """Perplexity protocols, defined in docs/evaluation.md."""

    protocols: list[str] = field(default_factory=lambda: ["reference", "strided", "word"])
    split: str = "val"  # val | train
    stride: int | None = None  # strided; null: half of seq_len
    seq_len: int | None = None  # null: the model's max_seq_len
    batch_size: int = 8  # windows a forward pass; has no influence on strided and word
    bootstrap_resamples: int | None = 1000  # drawn for 95 % intervals, by the run's seed; 0 or null: no intervals


@dataclass
class TrackerConfig:
    """`metrics.jsonl` in the run directory is always written; a tracker mirrors it."""

    name: str = MISSING  # mlflow | none
    uri: str | None = None  # null: sqlite in paths.outputs
    experiment: str | None = None  # null: task.name
    run_name: str | None = None  # null: model.name/dataset.name; an evaluation's also names the checkpoint
    system_metrics: bool = True  # MLflow samples CPU, memory and disk


@dataclass
class PathsConfig:
    """Directories; the only group, with tracker and hydra, that may read the environment."""

    outputs: str = MISSING  # run directories and the MLflow store
    cache: str = MISSING  # prepared data, trained tokenizers, downloads


@dataclass
class CommonConfig:
    """Keys that every entry point has."""

    seed: int = 0  # weights, order of batches, dropout, samples, the bootstrap's draws
    load: str | None = None  # a gpt2x checkpoint or a Hugging Face directory, told apart by content
    adapters: list[str] = field(default_factory=list)  # on load: runs of lora=, their checkpoints, PEFT directories
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class TrainConfig(CommonConfig):
    """`train.py`."""

    resume: str | None = None  # auto | a checkpoint directory | null
    plan: str = "false"  # true: only predict memory, communication and speed; search: rank the layouts that fit
    num_devices: int | None = None  # plan=search: how many devices; null: the layout's
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass
class EvaluateConfig(CommonConfig):
    """`evaluate.py`: the model and the tokenizer are the checkpoint's own."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: str | None = None  # results.json; null: in the run directory


@dataclass
class PredictConfig(CommonConfig):
    """`predict.py`."""

    prompts: list[str] | None = None
    adapter: str | None = None  # which of several adapters: the name of its run or directory
    prompts_file: str | None = None  # .txt: a prompt a line; .jsonl: keys `prompt`, or `instruction` and `input`
    template: str | None = "checkpoint"  # around prompts: the one tuned with, if any; a name or a file; null: none
    output: str | None = None  # JSONL file, "-" for stdout; null: text on the terminal
    generation: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass
class PrepareConfig:
    """`python -m gpt2x.commands.prepare`."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seq_len: int = MISSING
    output: str | None = None  # directory for the MindRecord files; null: the cache
