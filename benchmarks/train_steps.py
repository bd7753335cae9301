"""Contestants that train GPT-2: each builds its model from a Hugging Face directory and returns `run(ids) -> loss`.

They run in separate processes (`side_by_side.serve`) and import nothing of one another. Options that they read:
shape (layers, heads, hidden, positions, vocabulary), seq_len, micro_batch_size, dropout, threads, recompute.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, GRAD_CLIP = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


def batch(options: argparse.Namespace, step: int) -> np.ndarray:
    """Token ids (B, T + 1) of a step, the same for every contestant."""
    shape = (options.micro_batch_size, options.seq_len + 1)
    return np.random.default_rng(step).integers(0, options.shape[-1], shape).astype(np.int32)


def hf_config(options: argparse.Namespace):
    from transformers import GPT2Config

    layers, heads, hidden, positions, vocab = options.shape
    return GPT2Config(
        n_layer=layers, n_head=heads, n_embd=hidden, n_positions=positions, vocab_size=vocab,
        embd_pdrop=options.dropout, attn_pdrop=options.dropout, resid_pdrop=options.dropout,
        initializer_range=getattr(options, "initializer_range", 0.02),
    )  # fmt: skip


def save_weights(options: argparse.Namespace, folder: Path) -> None:
    """Random weights by transformers, as a Hugging Face directory."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(hf_config(options)).save_pretrained(folder)


def cpu_hardware(precision: str = "fp32"):
    """The CPU, as conf/hardware/cpu.yaml has it."""
    from gpt2x.config import HardwareConfig

    return HardwareConfig(name="cpu", device_target="CPU", precision=precision, memory_gb=None, peak_tflops=None,
                          devices_per_node=1, flash_attention=False, source="")  # fmt: skip


def gpt2x_model(shape: list[int]):
    """A shape as gpt2x's configuration."""
    from gpt2x.config import ModelConfig

    layers, heads, hidden, positions, vocab = shape
    return ModelConfig(name=f"{layers}x{hidden}", num_layers=layers, num_heads=heads, hidden_size=hidden,
                       max_seq_len=positions, vocab_size=vocab)  # fmt: skip


def gpt2x_step(options: argparse.Namespace, folder: Path, precision: str = "fp32"):
    """The jitted update of `train.py`."""
    import mindspore as ms
    from mindspore import Tensor

    from gpt2x.config import OptimizerConfig
    from gpt2x.convert import load_source
    from gpt2x.model.gpt2 import GPT2, load_weights
    from gpt2x.model.losses.language_modeling import WeightedLoss
    from gpt2x.optim.optimizers.adamw import AdamW
    from gpt2x.runtime.device import set_up_device
    from gpt2x.train.step import StepInputs, TrainStep

    hardware = cpu_hardware(precision)
    set_up_device(hardware)
    source = load_source(str(folder))
    net = GPT2(source.model, hardware, recompute=getattr(options, "recompute", "none"))
    load_weights(net, source.weights())
    optimizer = AdamW(
        OptimizerConfig(name="adamw", learning_rate=LEARNING_RATE, beta1=BETAS[0], beta2=BETAS[1], eps=EPS,
                        weight_decay=WEIGHT_DECAY),
        net.trainable_params(), net.backend,
    )  # fmt: skip
    update = TrainStep(
        WeightedLoss(net), net.trainable_params(), optimizer, 1, GRAD_CLIP, has_dropout=options.dropout > 0
    )
    weights = np.full((1, options.micro_batch_size, options.seq_len), 1.0, np.float32)
    weights, scale, count = weights / weights.size, Tensor(1.0, ms.float32), 0

    def run(ids: np.ndarray) -> float:
        nonlocal count
        count += 1
        key = Tensor(count, ms.int32)
        inputs = StepInputs(ids[None], weights, key, scale, optimizer.scalars(LEARNING_RATE, count))
        return update(inputs).loss

    return run


def torch_step(options: argparse.Namespace, folder: Path, is_compiled: bool, is_bf16: bool = False):
    """transformers' GPT2LMHeadModel with its default attention, and PyTorch's AdamW (fused) and clipping.

    is_bf16: by `torch.autocast`, whose weights and gradients are fp32.
    """
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(options.threads)
    model = GPT2LMHeadModel.from_pretrained(folder, config=hf_config(options)).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)

    def loss_of(ids):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            logits = model(ids[:, :-1], use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))

    if is_compiled:
        loss_of = torch.compile(loss_of, dynamic=False, fullgraph=True)

    def run(ids: np.ndarray) -> float:
        loss = loss_of(torch.from_numpy(ids.astype(np.int64)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return run


CONTESTANTS = {
    "gpt2x": gpt2x_step,
    "pytorch_eager": partial(torch_step, is_compiled=False),
    "torch_compile": partial(torch_step, is_compiled=True),
}
BF16_CONTESTANTS = {
    "gpt2x_bf16": partial(gpt2x_step, precision="bf16"),
    "eager_bf16": partial(torch_step, is_compiled=False, is_bf16=True),
}
