"""Peak memory and speed of training all of a model against adapters beside it; prints JSON.

Each contestant has its own process: `gpt2x.train.step.TrainStep` on random weights and random tokens, as `train.py`
builds it, without data, validation or checkpoints.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from gpt2x.config import HardwareConfig, LoraConfig, OptimizerConfig, ParallelConfig
from gpt2x.config.options import CONF, known_models

STEPS = 5


def option(group: str, name: str, schema: type):
    values = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(CONF / group / f"{name}.yaml"))
    return OmegaConf.to_object(values)


def measure(chosen: argparse.Namespace, lora_name: str) -> dict[str, object]:
    import mindspore as ms
    from mindspore import Tensor

    from gpt2x.lora.cells import add_adapters, initial_factors
    from gpt2x.lora.shapes import factor_placements
    from gpt2x.model.gpt2 import initial_weights
    from gpt2x.model.losses.language_modeling import WeightedLoss
    from gpt2x.optim.optimizers.adamw import AdamW
    from gpt2x.parallel.gradient_reduction import local_parameters
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.parallel.placement import placements
    from gpt2x.parallel.tensor import build_net
    from gpt2x.runtime.device import set_up_device
    from gpt2x.runtime.memory import peak_process_memory_gb
    from gpt2x.train.step import StepInputs, TrainStep

    hardware = option("hardware", "cpu", HardwareConfig)
    set_up_device(hardware)
    model = replace(known_models()[chosen.model], vocab_size=50257)
    lora = option("lora", lora_name, LoraConfig)
    lora.dropout = lora.dropout if chosen.dropout is None else chosen.dropout
    mesh = Mesh(ParallelConfig(name="single"))
    net = build_net(model, hardware, mesh)
    trained, values = placements(model, mesh.coordinates), initial_weights(model, 0)
    factors = {}
    if lora.rank is not None:
        add_adapters(net, model, lora, mesh)
        trained, factors = factor_placements(lora, model, mesh.coordinates), initial_factors(lora, model, 0)
    for parameter in net.get_parameters():
        parameter.set_data(Tensor((factors if parameter.name in factors else values)[parameter.name]))
    parameters = [part.parameter for part in local_parameters(net, model, mesh, trained)]
    optimizer = AdamW(option("optimizer", "adamw", OptimizerConfig), parameters, net.backend)
    step = TrainStep(WeightedLoss(net), parameters, optimizer, 1, 1.0, has_dropout=True)
    shape = (1, chosen.batch_size, chosen.seq_len)
    ids = np.random.default_rng(0).integers(0, 50257, (*shape[:2], shape[2] + 1)).astype(np.int32)
    weights = np.full(shape, 1 / (chosen.batch_size * chosen.seq_len), np.float32)
    times, losses = [], []
    for number in range(1, STEPS + 1):
        started = time.perf_counter()
        scalars = optimizer.scalars(1e-3, number)
        found = step(StepInputs(ids, weights, Tensor(number, ms.int32), Tensor(1.0, ms.float32), scalars))
        times.append(time.perf_counter() - started)
        losses.append(found.loss)
    return {
        "lora": lora_name,
        "trained_values": sum(parameter.size for parameter in parameters),
        "peak_rss_gb": round(peak_process_memory_gb(), 2),
        "step_s": round(min(times[1:]), 2),
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt2_small")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--lora", nargs="+", default=["none", "r8", "r64"], help="options of conf/lora")
    parser.add_argument("--dropout", type=float, help="lora.dropout")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen, chosen.child)))
        return
    rows = []
    for name in chosen.lora:
        child = [sys.executable, __file__, *sys.argv[1:], "--child", name]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    result = {"model": chosen.model, "batch_size": chosen.batch_size, "seq_len": chosen.seq_len, "rows": rows}
    print(json.dumps(result, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
