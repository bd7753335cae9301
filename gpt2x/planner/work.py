"""What a device does in a training step, and how long it takes without communication (no mindspore).

Legend: b sequences per micro batch, T tokens per sequence, D hidden size.
"""

from __future__ import annotations

from gpt2x.config import HardwareConfig, ParallelConfig, TrainerConfig
from gpt2x.config.layout import Coordinates, micro_batch_size, num_micro_batches
from gpt2x.model import stats
from gpt2x.planner.activations import FP32
from gpt2x.planner.communication import forward_passes
from gpt2x.planner.memory import accumulates
from gpt2x.planner.values import ModelValues, TrainedValues
from gpt2x.trainable import Trainable

# Bytes moved in device memory, counted from the operands and results in gpt2x/optim, gpt2x/train and gpt2x/ops.
DECAY_BYTES = 8  # per parameter: read and written by weight decay, if that is a separate pass
NORM_BYTES = 4  # per gradient: read for the global norm
SUM_BYTES = 12  # per gradient and micro batch: gradient and sum are read, the sum is written
CAST_BYTES = 6  # per weight and forward pass: 4 bytes read, 2 written
SCORE_BYTES = 32  # per attention weight: product, cast, mask, softmax, cast, output; the backward pass moves twice that
SCORE_DROPOUT_BYTES = 60  # per attention weight with dropout: hash, compare, scale, multiply
# gpt2x's CPU kernels: what a block does besides its products, per value of b T D. Forward: two layer norms, GELU, two
# residual sums, and the reordering around attention. Backward: the same, and sums of gradients and biases' gradients.
NATIVE_FORWARD_BYTES, NATIVE_BACKWARD_BYTES = 88, 132
NATIVE_DROPOUT_BYTES = 32
NATIVE_TIED_BYTES = 28  # per value of a tied embedding, whose two gradients are cleared, scaled and added
NATIVE_LOGIT_BYTES = 28  # per logit: written, read for its sum, turned into a gradient, read by two products
NATIVE_LAYER_S = 1.7e-3  # overhead of a block's operators, forward and backward: measured at hidden size 8


def update_bytes(num_states: int, is_native: bool) -> int:
    """Return the bytes that an update moves per value.

    Parameter, gradient and fp32 states are read; parameter and states are written. gpt2x's own kernel decays a
    parameter in the same pass.
    """
    return FP32 * (3 + 2 * num_states) + NORM_BYTES + (0 if is_native else DECAY_BYTES)


# Ascend: what a block does besides its products, per value of b T D, in a compute dtype of 2 bytes. Forward: two layer
# norms with casts to fp32 and back (40), biases of the linears (36), GELU (16), splits and transposes around attention
# (16), two residual sums (12). Backward: twice that. Dropout is part of the efficiency.
ASCEND_FORWARD_BYTES = 120
ASCEND_LOGIT_BYTES = 42  # per logit: written, cast, log-softmax, softmax, its gradient, cast back, read by two products
# Operators of a block as MindSpore compiles it without fusion (jit_level O0), and an assumed time to launch one: nobody
# has published it. MindFormers decodes 13B, about 2,400 operators a token, at 21 tokens/s, so it is at most 20 us. The
# device computes while the next operator is launched, so that only small operators wait for it.
ASCEND_FORWARD_LAUNCHES, ASCEND_BACKWARD_LAUNCHES, GRAPH_LAUNCH_S = 30, 60, 10e-6
# Without graphs: torch_npu decodes a block of about 50 operators in 832 us on a 910B3 (vllm-ascend issue 9404), waiting
# for launches. PyNative is taken to be the same.
EAGER_LAUNCH_S = 17e-6


def launch_s(hardware: HardwareConfig) -> float:
    """Return the seconds to launch an operator on a device."""
    return EAGER_LAUNCH_S if hardware.mode == "pynative" else GRAPH_LAUNCH_S


class Work:
    """Operations, bytes moved and seconds of one micro batch.

    Args:
        trainable: what is trained, of a model with its vocabulary.
        parallel: a layout that divides model and batch.
        hardware: the device.
        trainer: batch and sequence length.
    """

    def __init__(
        self, trainable: Trainable, parallel: ParallelConfig, hardware: HardwareConfig, trainer: TrainerConfig
    ):
        self.model, self.parallel, self.hardware, self.trainer = trainable.model, parallel, hardware, trainer
        self.micro_batches = num_micro_batches(parallel, trainer)
        self.micro_batch_size = micro_batch_size(parallel, trainer)
        self.tokens = self.micro_batch_size * trainer.seq_len
        self.width = stats.BYTES[hardware.tensor_precision]
        self.is_native = hardware.computes_natively
        self.is_flash = stats.uses_flash_attention(self.model, hardware) or self.is_native

    def attention_passes(self, coordinates: Coordinates) -> int:
        """Return the forward passes through attention per backward pass."""
        return forward_passes(coordinates) + (self.parallel.recompute == "attention" and not self.is_native)

    def flops(self, coordinates: Coordinates, values: ModelValues, trained: TrainedValues) -> float:
        """Return the floating-point operations of one micro batch.

        Products: 2 per weight and token for each forward pass, for the gradient of the input, and for the weight's
        gradient if it is trained. Attention: 2 x 2 x D x T/2 per token and layer, T instead of T/2 without a fused
        kernel, and twice that in the backward pass. Adapters add their own products to those of the frozen weights.
        """
        num_layers = len(coordinates.layers(self.model.num_layers))
        passes = forward_passes(coordinates) + 1
        matrices = num_layers * values.block_matrices + trained.adapter_matrices
        linear = 2 * self.tokens * (matrices * passes + trained.block_matrices)
        length = self.trainer.seq_len / (2 if self.is_flash else 1)
        attention = 4 * self.tokens * num_layers * self.model.hidden_size / self.parallel.tensor * length
        passes = self.attention_passes(coordinates) + 2
        return linear + attention * passes + self.head_flops(values, trained)

    def head_flops(self, values: ModelValues, trained: TrainedValues) -> float:
        """Return the floating-point operations of the head, of one micro batch."""
        return 2 * self.tokens * values.head * (2 + trained.trains_head)

    def moved_bytes(self, coordinates: Coordinates, values: ModelValues, trained: TrainedValues) -> float:
        """Return the bytes that one micro batch moves in device memory besides its matrix products.

        These are casts, sums of gradients, attention weights without a fused kernel, and on the CPU other operators.
        """
        moved = 0.0
        layers = len(coordinates.layers(self.model.num_layers))
        if self.width < FP32:
            shards = self.parallel.shards if self.parallel.splits_weights else 1  # a rank casts its rows, then gathers
            blocks = layers * values.block_matrices / shards
            moved += CAST_BYTES * (blocks * forward_passes(coordinates) + values.head)
        moved += SUM_BYTES * self.summed_values(trained)
        if not self.is_flash:
            each = SCORE_BYTES + SCORE_DROPOUT_BYTES * (stats.attention_dropout(self.model) > 0)
            scores = self.micro_batch_size * self.model.num_heads / self.parallel.tensor * self.trainer.seq_len**2
            moved += each * scores * layers * (self.attention_passes(coordinates) + 2)
        if not self.hardware.is_cpu:
            per_value = ASCEND_FORWARD_BYTES * self.width / 2 * (forward_passes(coordinates) + 2)
            moved += per_value * self.tokens * self.model.hidden_size / self.parallel.tensor * layers
            moved += ASCEND_LOGIT_BYTES * self.tokens * values.head / self.model.hidden_size
        if self.is_native:
            each = NATIVE_FORWARD_BYTES * forward_passes(coordinates) + NATIVE_BACKWARD_BYTES
            each += NATIVE_DROPOUT_BYTES * (self.model.dropout > 0)
            moved += each * self.tokens * self.model.hidden_size / self.parallel.tensor * layers
            moved += NATIVE_TIED_BYTES * values.head * self.model.tie_embeddings
            moved += NATIVE_LOGIT_BYTES * self.tokens * values.head / self.model.hidden_size
        return moved

    def summed_values(self, trained: TrainedValues) -> float:
        """Return how many gradients are added to sums in one micro batch."""
        if self.parallel.splits_weights:
            return trained.parameters - trained.in_blocks + trained.block_states
        if not accumulates(self.parallel, self.micro_batches):
            return 0
        return trained.states if self.parallel.splits_gradients else trained.parameters

    def compute_s(self, coordinates: Coordinates, values: ModelValues, trained: TrainedValues) -> float | None:
        """Return the seconds of one micro batch without communication; None if the hardware's figures are not known."""
        hardware = self.hardware
        is_calibrated = not hardware.is_cpu or (self.is_native and hardware.precision == "fp32")
        if not (hardware.peak_tflops and hardware.efficiency and hardware.memory_gb_per_s and is_calibrated):
            return None
        seconds = self.flops(coordinates, values, trained) / (hardware.peak_tflops * 1e12 * hardware.efficiency)
        seconds += self.moved_bytes(coordinates, values, trained) / (hardware.memory_gb_per_s * 1e9)
        layers = len(coordinates.layers(self.model.num_layers))
        if self.is_native:
            return seconds + NATIVE_LAYER_S * layers
        launches = ASCEND_FORWARD_LAUNCHES * forward_passes(coordinates) + ASCEND_BACKWARD_LAUNCHES
        return max(seconds, layers * launches * launch_s(hardware))

    def update_s(self, num_states: int, trained: TrainedValues) -> float:
        """Return the seconds of the optimizer, by the bandwidth of the device's memory, which must be known."""
        assert self.hardware.memory_gb_per_s is not None
        return update_bytes(num_states, self.is_native) * trained.states / (self.hardware.memory_gb_per_s * 1e9)
