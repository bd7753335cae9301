"""Speed and padding of instruction tuning with packed rows against batches in length buckets; prints JSON.

Both train one model on the same examples, by `gpt2x.train.step.TrainStep` as `train.py` builds it, in turns within one
process: a batch of packed rows, then batches of single examples with about as many tokens.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from gpt2x.config import DatasetConfig, HardwareConfig, OptimizerConfig, ParallelConfig, TokenizerConfig
from gpt2x.config.options import CONF, known_models
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.instruction import InstructionRows, inputs_of
from gpt2x.data.sampling import batches
from gpt2x.data.tokenizer import Tokenizer

WARM_UP = 2  # rounds; of single examples every bucket is compiled before them


def batches_of(split, batch_size: int):
    yield from batches(split, batch_size=batch_size, seed=0, epoch=0, shuffle=True, drop_last=True)


def padding_of(split, batch_size: int, width: int | None) -> dict[str, float]:
    """Over an epoch: the share of positions that are padding, and tokens a position."""
    positions = tokens = responses = 0
    for batch in batches_of(split, batch_size):
        found = inputs_of(batch, width=width)
        positions += found.counted.size
        tokens += int((batch["attention_mask"][:, : found.counted.shape[1]] != 0).sum())
        responses += int(found.counted.sum())
    return {
        "padding_share": round(1 - tokens / positions, 4),
        "response_share": round(responses / positions, 4),
        "positions": positions,
    }


class Contestant:
    """One way to make batches, with its own model."""

    def __init__(self, chosen: argparse.Namespace, data, model, hardware, *, packing: bool):
        import mindspore as ms
        from mindspore import Tensor

        from gpt2x.model.gpt2 import initial_weights
        from gpt2x.model.losses.language_modeling import WeightedLoss
        from gpt2x.optim.optimizers.adamw import AdamW
        from gpt2x.parallel.mesh import Mesh
        from gpt2x.parallel.tensor import build_net
        from gpt2x.train.step import TrainStep

        self.split, self.packing = data.train, packing
        self.width = chosen.seq_len if packing else None
        # single examples: those of as many packed rows, so that an update learns from as many responses
        self.batch_size = chosen.batch_size if packing else round(chosen.batch_size * chosen.examples_a_row)
        net = build_net(model, hardware, Mesh(ParallelConfig(name="single")))
        values = initial_weights(model, 0)
        parameters = list(net.get_parameters())
        for parameter in parameters:
            parameter.set_data(Tensor(values[parameter.name]))
        self.optimizer = AdamW(OptimizerConfig(name="adamw", learning_rate=1e-3), parameters, net.backend)
        self.step = TrainStep(WeightedLoss(net), parameters, self.optimizer, 1, 1.0, has_dropout=False)
        self.inputs = Tensor(0, ms.int32), Tensor(1.0, ms.float32)
        self.rows = iter(())
        self.number, self.seconds, self.tokens, self.responses, self.positions = 0, [], 0, 0, 0

    def update(self, *, counts: bool) -> None:
        batch = next(self.rows, None)
        if batch is None:
            self.rows = batches_of(self.split, self.batch_size)
            batch = next(self.rows)
        self.run(batch, self.width, counts=counts)

    def run(self, batch, width: int | None, *, counts: bool) -> None:
        from gpt2x.train.step import StepInputs

        started = time.perf_counter()
        found = inputs_of(batch, width=width)
        starts = found.starts[None] if self.packing else None
        total = found.counted.sum()
        self.number += 1
        scalars = self.optimizer.scalars(1e-4, self.number)
        weights = found.counted[None] / total
        self.step(StepInputs(found.ids[None], weights, *self.inputs, scalars, starts=starts))
        if counts:
            self.seconds.append(time.perf_counter() - started)
            self.tokens += int((batch["attention_mask"][:, : found.counted.shape[1]] != 0).sum())
            self.responses += int(total)
            self.positions += found.counted.size

    def warm_up(self) -> None:
        """Compile every length there is, then a round or two."""
        if self.width is None:
            seen: set[int] = set()
            for batch in batches_of(self.split, self.batch_size):
                width = inputs_of(batch).counted.shape[1]
                if width not in seen:
                    seen.add(width)
                    self.run(batch, width, counts=False)
        for _ in range(WARM_UP):
            self.update(counts=False)

    def report(self) -> dict[str, object]:
        seconds = sum(self.seconds)
        return {
            "packing": self.packing,
            "rows_an_update": self.batch_size,
            "examples_a_row": round(self.split.num_documents / self.split.num_blocks, 2),
            "updates": len(self.seconds),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "response_tokens_per_s": round(self.responses / seconds, 1),
            "positions_per_s": round(self.positions / seconds, 1),
            "epoch": padding_of(self.split, self.batch_size, self.width),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a .json with instruction, input and output a row")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--cache", default="outputs/cache")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2, help="packed rows per update")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()

    from gpt2x.runtime.device import set_up_device

    hardware = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(HardwareConfig), OmegaConf.load(CONF / "hardware" / "cpu.yaml"))
    )
    set_up_device(hardware)
    tokenizer = Tokenizer.load(chosen.tokenizer)
    base = DatasetConfig(name="alpaca", corpus="instructions", train_path=chosen.data, skip_empty=True)
    data = {
        packing: prepare(
            replace(base, packing=packing), TokenizerConfig(name="given"), InstructionRows(chosen.seq_len),
            cache=Path(chosen.cache), checkpoint_tokenizer=tokenizer, splits=("train",),
        )
        for packing in (True, False)
    }  # fmt: skip
    split = data[True].train
    chosen.examples_a_row = split.num_documents / split.num_blocks
    model = replace(
        known_models()["gpt2_tiny"], vocab_size=tokenizer.vocab_size, max_seq_len=chosen.seq_len, dropout=0.0
    )
    contestants = [Contestant(chosen, data[packing], model, hardware, packing=packing) for packing in (True, False)]
    for contestant in contestants:
        contestant.warm_up()
    for number in range(chosen.rounds):
        for contestant in contestants[:: 1 if number % 2 else -1]:
            contestant.update(counts=True)
    rows = [contestant.report() for contestant in contestants]
    ratio = rows[0]["response_tokens_per_s"] / rows[1]["response_tokens_per_s"]
    to_seq_len = padding_of(data[False].train, contestants[1].batch_size, chosen.seq_len)
    result = {
        "seq_len": chosen.seq_len, "examples": split.num_documents, "tokens": split.num_tokens, "rows": rows,
        "packed_over_unpacked_response_tokens_per_s": round(ratio, 3), "epoch_padded_to_seq_len": to_seq_len,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
