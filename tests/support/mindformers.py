"""Files of MindFormers, written by MindSpore itself from the reference's names of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from gpt2x.config import ModelConfig
from gpt2x.model.stats import ffn_size

TINY = ModelConfig(name="mindformers", num_layers=2, num_heads=2, hidden_size=8, max_seq_len=16, vocab_size=50)


def parameters_of(model: ModelConfig, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Return random parameters by MindFormers' names, in the order of its converter (gpt2/convert_weight.py)."""
    hidden, ffn = model.hidden_size, ffn_size(model)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(model.num_layers):
        block = f"backbone.blocks.{layer}"
        shapes |= {f"{block}.layernorm{n}.{part}": (hidden,) for n in (1, 2) for part in ("gamma", "beta")}
        shapes |= {
            f"{block}.attention.projection.weight": (hidden, hidden),
            f"{block}.attention.projection.bias": (hidden,),
        }
        for n in (1, 2, 3):
            shapes |= {
                f"{block}.attention.dense{n}.weight": (hidden, hidden),
                f"{block}.attention.dense{n}.bias": (hidden,),
            }
        shapes |= {f"{block}.output.mapping.weight": (hidden, ffn), f"{block}.output.mapping.bias": (ffn,)}
        shapes |= {f"{block}.output.projection.weight": (ffn, hidden), f"{block}.output.projection.bias": (hidden,)}
    shapes |= {"backbone.layernorm.gamma": (hidden,), "backbone.layernorm.beta": (hidden,)}
    assert model.vocab_size is not None
    shapes["backbone.embedding.word_embedding.embedding_table"] = (model.vocab_size, hidden)
    shapes["backbone.embedding.position_embedding.embedding_table"] = (model.max_seq_len, hidden)
    if model.labels:
        shapes["score.weight"] = (len(model.labels), hidden)
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def save(path: Path, parameters: Mapping[str, np.ndarray], **options: object) -> Path:
    """Write parameters by MindSpore's save_checkpoint; `options` are its keywords."""
    import mindspore as ms

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"name": name, "data": ms.Parameter(ms.Tensor(values), name=name)} for name, values in parameters.items()]
    ms.save_checkpoint(rows, str(path), **options)
    path.chmod(0o600)
    return path


def write_yaml(path: Path, model: ModelConfig, **keys: object) -> Path:
    """Write the part of a MindFormers YAML file that describes the model; a key that is None is left out."""
    config: dict[str, object] = {
        "type": "GPT2Config",
        "seq_length": model.max_seq_len,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "expand_ratio": ffn_size(model) // model.hidden_size,
        "hidden_act": "gelu",
    }
    config = {key: value for key, value in (config | keys).items() if value is not None}
    content = {"run_mode": "predict", "model": {"model_config": config, "arch": {"type": "GPT2LMHeadModel"}}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def logical_of(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return logical tensors, as MindFormers' converter to PyTorch computes them (gpt2/convert_reversed.py)."""
    logical: dict[str, np.ndarray] = {}
    names = {
        "layernorm1.gamma": "ln_1.weight",
        "layernorm1.beta": "ln_1.bias",
        "layernorm2.gamma": "ln_2.weight",
        "layernorm2.beta": "ln_2.bias",
        "attention.projection.weight": "attn.c_proj.weight",
        "attention.projection.bias": "attn.c_proj.bias",
        "output.mapping.weight": "mlp.c_fc.weight",
        "output.mapping.bias": "mlp.c_fc.bias",
        "output.projection.weight": "mlp.c_proj.weight",
        "output.projection.bias": "mlp.c_proj.bias",
    }
    outer = {
        "backbone.layernorm.gamma": "ln_f.weight",
        "backbone.layernorm.beta": "ln_f.bias",
        "backbone.embedding.word_embedding.embedding_table": "wte.weight",
        "backbone.embedding.position_embedding.embedding_table": "wpe.weight",
        "score.weight": "score.weight",
    }
    for name, values in parameters.items():
        if name in outer:
            logical[outer[name]] = values
        elif ".dense" not in name:
            _, _, layer, within = name.split(".", 3)
            logical[f"h.{layer}.{names[within]}"] = values
        elif name.endswith("dense1.weight"):
            block = name.removesuffix("dense1.weight")
            layer = name.split(".")[2]
            thirds = [f"{block}dense{n}" for n in (1, 2, 3)]
            logical[f"h.{layer}.attn.c_attn.weight"] = np.concatenate([parameters[f"{t}.weight"].T for t in thirds], -1)
            logical[f"h.{layer}.attn.c_attn.bias"] = np.concatenate([parameters[f"{t}.bias"] for t in thirds])
    return logical


def write_strategy(
    path: Path, layouts: Mapping[str, tuple[list[int], list[int] | list[list[int]], int, int]], stage: int = 0
) -> Path:
    """Write a strategy file by MindSpore's messages.

    Args:
        path: the file.
        layouts: parameter -> (device matrix, tensor map, step between optimizer shards, their number).
        stage: of the pipeline.
    """
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    content = ParallelStrategyMap(current_stage=1)
    item = content.parallel_strategy_item.add(node_name=f"operator{stage}")
    item.parallel_strategys.stage = stage
    item.parallel_strategys.parallel_strategy.add(dim=[1])
    for name, (devices, tensor_map, step, shards) in layouts.items():
        layout = content.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add(dim=devices)
        if any(isinstance(dims, list) for dims in tensor_map):
            for dims in tensor_map:
                layout.tensor_map.add(dim=dims)
        else:
            layout.tensor_map.add(dim=tensor_map)
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field, layout.opt_weight_shard_step, layout.opt_weight_shard_size = 0, step, shards
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.SerializeToString())
    return path
