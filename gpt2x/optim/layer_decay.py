"""Layer-wise decay of the learning rate, for fine-tuning (no mindspore)."""

from __future__ import annotations

from gpt2x.config import OptimizerConfig
from gpt2x.model.stats import depth


def layer_rate_factors(config: OptimizerConfig, names: list[str], num_layers: int) -> list[float] | None:
    """Return each tensor's factor of the learning rate, layer_decay ** (num_layers + 1 - depth); None without decay.

    The factor is 1 after the last block and smallest in the embeddings. As in ELECTRA's fine-tuning (Clark et al.,
    arXiv:2003.10555), with the exponents of MAE's `param_groups_lrd` and BEiT's `get_num_layer_for_vit`.
    """
    if config.layer_decay in (None, 1.0):
        return None
    return [config.layer_decay ** (num_layers + 1 - depth(name, num_layers)) for name in names]
