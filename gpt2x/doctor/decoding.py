"""The decoder's cache against the whole forward pass: a prompt, then one token after the other."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.doctor.report import CheckFailedError
from gpt2x.generate.decoder import Decoder
from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights

MODEL = ModelConfig(
    name="doctor", num_layers=2, num_heads=2, hidden_size=32, max_seq_len=32, vocab_size=64, dropout=0.0,
    initializer_range=0.3,
)  # fmt: skip
BATCH, PROMPT, TOKENS = 2, 7, 12
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}  # of logits, as a share of the largest


def compare_decoding(hardware: HardwareConfig) -> str:
    """Compare the logits of a decoder with those of the net for the same tokens.

    Raises:
        CheckFailedError: the largest difference exceeds `TOLERANCES`.
    """
    net = GPT2(MODEL, hardware)
    load_weights(net, initial_weights(MODEL, seed=0))
    ids = np.random.default_rng(0).integers(0, MODEL.vocab_size or 0, (BATCH, TOKENS)).astype(np.int32)
    logits = net.logits(net(Tensor(ids), None)).astype(ms.float32).asnumpy().reshape(BATCH, TOKENS, -1)
    decoder = Decoder(net, BATCH, TOKENS)
    error, first = 0.0, 0
    for end in (PROMPT, *range(PROMPT + 1, TOKENS + 1)):
        positions = np.tile(np.arange(first, end, dtype=np.int32), (BATCH, 1))
        last = Tensor(np.full(BATCH, end - first - 1, np.int32))
        step = decoder(Tensor(ids[:, first:end]), Tensor(positions), last).astype(ms.float32).asnumpy()
        expected = logits[:, end - 1, : step.shape[-1]]
        error = max(error, float(np.abs(step - expected).max() / np.abs(logits[..., : MODEL.vocab_size]).max()))
        first = end
    allowed = TOLERANCES[hardware.precision]
    text = f"logits of {TOKENS - PROMPT + 1} steps differ by {error:.0e} (allowed {allowed:.0e})"
    if not error <= allowed:
        raise CheckFailedError(text)
    return text
