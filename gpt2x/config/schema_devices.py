"""The keys that say on which devices a run is computed: the layout, where its processes meet, the hardware."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.metadata import HOST, LAYOUT, NAME, STEP, key


@dataclass
class ParallelConfig:
    """The layout of a run over data * tensor * pipeline processes, one per device (docs/parallel.md)."""

    name: str = key(NAME, LAYOUT)
    data: int = key("replicas of the model; each trains on its part of every batch", LAYOUT, 1, at_least=1)
    tensor: int = key(
        "processes that split every layer: heads, feed-forward columns, vocabulary", LAYOUT, 1, at_least=1
    )
    pipeline: int = key("stages of consecutive layers", LAYOUT, 1, at_least=1)
    micro_batches: int | None = key("forward passes per update and replica", LAYOUT, None, at_least=1,
                                    null="from trainer.micro_batch_size")  # fmt: skip
    zero_stage: int | None = key(
        "what replicas split: 0 nothing, 1 the optimizer's states, 2 gradients too, 3 weights too", LAYOUT, None,
        at_least=0, at_most=3, null="the lowest whose planned memory fits the device",
    )  # fmt: skip
    optimizer_shards: int | None = key("replicas among which zero_stage splits; divides data", LAYOUT, None, at_least=1,
                                       null="all replicas, or 1 with zero_stage=0")  # fmt: skip
    reduce_dtype: str = key("zero_stage=3: in what gradients of blocks are summed over replicas", LAYOUT, "compute",
                            choices=("compute", "fp32"))  # fmt: skip
    gather_ahead: bool | None = key(
        "zero_stage=3: gather a block's weights while the one before it computes", LAYOUT, None,
        null="on devices other than the CPU, where nothing overlaps",
    )  # fmt: skip
    sequence_parallel: bool = key("tensor > 1: split the tokens of layer norms and dropout", LAYOUT, False)
    vocab_parallel: bool = key("tensor > 1: split the vocabulary of embedding, head and cross entropy", LAYOUT, True)
    recompute: str = key("activations that backward computes again instead of keeping them", LAYOUT, "none",
                         choices=("none", "attention", "block"))  # fmt: skip

    @property
    def shards(self) -> int:
        """Return how many replicas split what `zero_stage` says; 1: each has all of it."""
        if self.optimizer_shards is not None:
            return self.optimizer_shards
        return self.data if self.zero_stage else 1

    @property
    def splits_weights(self) -> bool:
        """Return whether a process has its rows of the blocks' weights only (ZeRO-3)."""
        return self.zero_stage == 3

    @property
    def splits_gradients(self) -> bool:
        """Return whether gradients are summed over replicas, and split, in each micro batch (ZeRO-2 and ZeRO-3)."""
        return (self.zero_stage or 0) >= 2

    def num_slots(self, is_cpu: bool) -> int:
        """Return how many blocks have whole weights under full sharding: two if one is gathered while one computes.

        On the CPU, kernels run one after the other: a second slot would only take memory and more graphs.
        """
        gathers_ahead = not is_cpu if self.gather_ahead is None else self.gather_ahead
        return 2 if gathers_ahead else 1


@dataclass
class LaunchConfig:
    """Where the processes of a layout meet. One machine needs none of it."""

    address: str | None = key("name or IP address of node 0", HOST, None, null="this machine (single node only)")
    port: int | None = key("TCP port on node 0", HOST, None, at_least=1, at_most=65535,
                           null="a free one (single node only)")  # fmt: skip
    num_nodes: int = key("machines, each with the same number of processes", HOST, 1, at_least=1)
    node_rank: int = key("this machine's number, from 0", HOST, 0, at_least=0)
    timeout_s: int = key("how long a process waits for the others", HOST, 600, at_least=1, unit="seconds")
    grace_s: int = key("from a signal such as SIGTERM to the end of all processes, at most", HOST, 30, at_least=5,
                       unit="seconds")  # fmt: skip
    check_memory: bool = key("start only if the plan fits the memory that is there", HOST, True)


# What `HardwareConfig.has_flash_kernel_of` requires; the limits are those of MindSpore's `flash_attention_score`.
FLASH_KERNEL = "fp16 or bf16, and at most 256 heads whose size is a multiple of 16, at most 512"
# Examples of a packed row. With padding as one more, 16 rows stay below the 1024 sequences that `flash_attention_score`
# takes in its layout TND.
MAX_PACKED_EXAMPLES = 60

# MindFormers' recipes give MindSpore 59 GB of a device of 64 GB (run_gpt2_13b_910b.yaml: max_device_memory); the driver
# and HCCL use the rest.
USABLE_FRACTION = 59 / 64


@dataclass
class HardwareConfig:
    """A device by its data sheet; `source` names the origin of the numbers."""

    name: str = key(NAME, LAYOUT)
    device_target: str = key("MindSpore's backend", LAYOUT, choices=("CPU", "Ascend"))
    precision: str = key(
        "of matrix products; bf16 on the CPU: with AMX or AVX512-BF16", STEP, choices=("fp32", "fp16", "bf16")
    )
    memory_gb: float | None = key("memory per device", HOST, unit="GB", above=0, null="the machine's")
    peak_tflops: float | None = key("dense peak at `precision`", HOST, unit="TFLOP/s", above=0,
                                    null="measured with a matrix product at start")  # fmt: skip
    devices_per_node: int = key("devices per machine", HOST, at_least=1)
    flash_attention: bool = key("the device has a fused attention kernel", LAYOUT)
    source: str = key("where the numbers come from", HOST)
    mode: str = key("compile graphs, or run one operator after the other (MindSpore's PyNative)", LAYOUT, "graph",
                    choices=("graph", "pynative"))  # fmt: skip
    native_kernels: bool = key("CPU: use gpt2x's C++ kernels; false: only MindSpore's operators", LAYOUT, True)
    efficiency: float | None = key("share of the peak that matrix products reach (docs/planning.md)", HOST, None,
                                   above=0, null="unknown")  # fmt: skip
    memory_gb_per_s: float | None = key(
        "bandwidth that operators reach in a device's memory", HOST, None, unit="GB/s", above=0, null="unknown"
    )
    link_gb_per_s: float | None = key("bandwidth between two devices of a node", HOST, None, unit="GB/s", above=0,
                                      null="unknown")  # fmt: skip
    network_gb_per_s: float | None = key("bandwidth from a device to other nodes", HOST, None, unit="GB/s", above=0,
                                         null="unknown")  # fmt: skip
    pool_gb: float | None = key("Ascend: limit of MindSpore's memory pool, on which the plan counts", HOST, None,
                                unit="GB", above=0, null="59/64 of memory_gb")  # fmt: skip
    deterministic: bool = key("Ascend: computation repeats every float, and is slower; the CPU always repeats them",
                              LAYOUT, False)  # fmt: skip
    jit_level: str = key("Ascend: O1 fuses chains of elementwise operators, which MindSpore calls experimental",
                         LAYOUT, "O0", choices=("O0", "O1"))  # fmt: skip
    bind_cores: bool = key("Ascend: MindSpore keeps its threads on cores near their device", HOST, False)

    @property
    def usable_gb(self) -> float:
        """Return the GB of a device, not the CPU, that a run can fill: those of MindSpore's memory pool."""
        assert self.memory_gb is not None
        return self.memory_gb * USABLE_FRACTION if self.pool_gb is None else self.pool_gb

    @property
    def is_cpu(self) -> bool:
        """Return whether the device is the CPU."""
        return self.device_target == "CPU"

    @property
    def backend(self) -> str:
        """Return the implementation of the operators: the name of a file in `gpt2x/ops`."""
        if not self.is_cpu:
            return self.device_target.lower()
        return "native" if self.native_kernels else "composed"

    @property
    def computes_natively(self) -> bool:
        """Whether gpt2x's C++ kernels compute the model; in fp16 they compute only the optimizer update."""
        return self.backend == "native" and self.precision != "fp16"

    @property
    def tensor_precision(self) -> str:
        """Return the type of activations: `precision`, but fp32 where kernels round the operands of products."""
        return "fp32" if self.computes_natively else self.precision

    def has_flash_kernel_of(self, num_heads: int, head_dim: int) -> bool:
        """Return whether the device's flash kernel computes attention of such heads, within `FLASH_KERNEL`."""
        fits = num_heads <= 256 and head_dim % 16 == 0 and head_dim <= 512
        return self.flash_attention and self.precision != "fp32" and fits
