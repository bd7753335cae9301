"""The loader of MLflow models: completions of prompts, or classes of texts, from a request's table.

A served model answers as `predict.py` does with one process: same checks, same decoding, same texts. It lives in a
server, so its device is set up once, and requests of several threads are computed one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpt2x.config import HardwareConfig, ParallelConfig, TokenizerConfig
from gpt2x.config.options import read_option
from gpt2x.data.rows.labelled import encode
from gpt2x.data.sources.labelled import Example
from gpt2x.data.template import stored_template
from gpt2x.errors import require
from gpt2x.generate.class_scorer import ClassScorer
from gpt2x.generate.completion import Generator
from gpt2x.generate.predict_classes import answer
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import Pretrained, load_pretrained
from gpt2x.runtime.device import has_device, set_up_device
from gpt2x.serve.requests import Queue, answered_by_mlflow, read_params, read_prompts

if TYPE_CHECKING:
    import pandas

CONFIG_VARIABLE = "SERVING_MODEL_CONFIG"  # from which MLflow's server reads changes of the model config


class Completer:
    """Completes prompts; the parameters of a request are decoding options.

    Args:
        pretrained: a language model.
        hardware: the device.
        batch_size: most prompts decoded together.
        weights: the form in which a step reads the weights.
    """

    def __init__(self, pretrained: Pretrained, hardware: HardwareConfig, batch_size: int, weights: str):
        self.template = stored_template(pretrained.source.tokenizer_dir)
        self.generator = Generator(
            pretrained.net, pretrained.model, hardware, pretrained.tokenizer, special_ids=pretrained.special_ids
        )
        self.batch_size, self.weights = batch_size, weights
        self.queue = Queue()

    def predict(self, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> pandas.DataFrame:
        """Return a row per prompt: `completion`, `num_tokens` and `finish_reason`, "eos" or "length".

        Raises:
            MlflowException: a mistake of the caller.
        """
        import pandas

        with answered_by_mlflow():
            prompts = read_prompts(model_input)
            texts = [self.template.prompt(*prompt[:2]) if self.template else prompt.text for prompt in prompts]
            generation, seed = read_params(params, slots_for(len(prompts), self.batch_size), self.weights)
            with self.queue.turn():  # one cache of keys and values, and MindSpore compiles in one thread at a time
                completions = self.generator.complete(texts, generation, seed)
        rows = [{key: asdict(one)[key] for key in ("completion", "num_tokens", "finish_reason")} for one in completions]
        return pandas.DataFrame(rows)


class Labeller:
    """Gives each text a class, or a score if the head has one.

    Args:
        pretrained: a classifier.
        batch_size: most texts in one forward pass.
    """

    def __init__(self, pretrained: Pretrained, batch_size: int):
        self.pretrained, self.batch_size = pretrained, batch_size
        self.scorers: dict[int, ClassScorer] = {}
        self.queue = Queue()

    def predict(self, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> pandas.DataFrame:
        """Return a row per prompt: its `label` (or `score`), the `probabilities` of all labels, and `is_cut`.

        `is_cut` is true if the text has more tokens than the model reads, so that only its beginning counted.

        Raises:
            MlflowException: a mistake of the caller.
        """
        import pandas

        with answered_by_mlflow():
            texts = [prompt.text.strip() for prompt in read_prompts(model_input)]
            size = slots_for(len(texts), self.batch_size)
            with self.queue.turn():
                rows = [row for start in range(0, len(texts), size) for row in self.classes(texts, start, size)]
        return pandas.DataFrame(rows)

    def classes(self, texts: list[str], start: int, size: int) -> list[dict[str, Any]]:
        """Return the rows of up to `size` texts from the one with index `start`."""
        model = self.pretrained.model
        if size not in self.scorers:
            net, pad_id = self.pretrained.net, self.pretrained.special_ids.pad
            self.scorers[size] = ClassScorer(net, size, model.max_seq_len, pad_id=pad_id)  # type: ignore[arg-type]
        examples = [Example(text, "", "") for text in texts[start : start + size]]
        ids, mask, lengths = encode(examples, self.pretrained.tokenizer, model.max_seq_len)
        logits = self.scorers[size].logits(ids, mask)
        return [
            answer(row, model.labels or []) | {"is_cut": bool(length > model.max_seq_len)}
            for row, length in zip(logits, lengths, strict=True)
        ]


def slots_for(num_prompts: int, batch_size: int) -> int:
    """Return how many prompts are computed together: a power of two, so that few graphs serve all requests."""
    return 1 << (max(1, min(num_prompts, batch_size)).bit_length() - 1)


def device_of(name: str) -> HardwareConfig:
    """Return the option `name` of `conf/hardware`.

    Raises:
        UserError: there is no such option, or this machine has no such device.
    """
    hardware = read_option("hardware", name, HardwareConfig)
    require(
        has_device(hardware.device_target),
        f"hardware={name}: this machine has no device of {hardware.device_target}; set "
        f"""{CONFIG_VARIABLE}='{{"hardware": "cpu"}}' before `mlflow models serve`, or give it as model_config.""",
    )
    return hardware


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> Completer | Labeller:
    """Load a model; MLflow calls this function by its name.

    Args:
        data_path: the checkpoint within MLflow's directory. Nothing else is read.
        model_config: `gpt2x.formats.mlflow.MODEL_CONFIG`, with what `SERVING_MODEL_CONFIG` changes.

    Raises:
        UserError: the checkpoint is damaged, or this machine lacks its device.
    """
    config = dict(model_config or {})
    hardware = device_of(str(config.get("hardware") or "cpu"))
    set_up_device(hardware)
    mesh = Mesh(ParallelConfig(name="single"), hardware.device_target)
    pretrained = load_pretrained(data_path, hardware, TokenizerConfig(name="checkpoint"), mesh)
    batch_size, weights = int(config.get("batch_size") or 8), str(config.get("weights") or "fp32")
    if pretrained.model.is_classifier:
        return Labeller(pretrained, batch_size)
    return Completer(pretrained, hardware, batch_size, weights)
