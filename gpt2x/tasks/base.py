"""What a run trains for, and what `evaluate.py` and `predict.py` do with a model of that kind.

A task is one file in this package. Its name is `task.objective`, and its last line is `TASK = MyTask()`; no list
elsewhere repeats it (`gpt2x.tasks.registry`). `conf/task/NAME.yaml` is the option that users choose.

In the order in which a run asks:

    check(config)                      reject a configuration, before any work
    row_form(config)                   how text becomes rows of tokens
    fit_model(model, data, loaded)     give the model the head that the data need
    loss(config, net), inputs(batch)   one update
    validation(run, net, mesh)         metrics while training; `metrics` says which direction is better
    baseline, describe, summary        what the terminal says
    inference                          evaluate.py and predict.py, for a model that is loaded

A task states all of this itself: nothing is inherited, so that no task validates or predicts as another one does
without saying so. What two tasks share is a function, or the instance of the other task, that both call. Modules of
this package import what is heavy (mindspore, numpy, `gpt2x.data`) inside of functions, since a typing mistake must be
answered at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from gpt2x.config import EvaluateConfig, ModelConfig, PredictConfig, TrainConfig
from gpt2x.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn

    from gpt2x.convert import WeightsSource
    from gpt2x.data.mindrecord import Split
    from gpt2x.data.prepare import PreparedData
    from gpt2x.data.rows.base import RowForm
    from gpt2x.data.sampling import Batch, Inputs
    from gpt2x.data.tokenizer import Tokenizer
    from gpt2x.evaluate.measurement import Measurement
    from gpt2x.generate.output import Lines
    from gpt2x.generate.prompts import Prompt
    from gpt2x.lora.adapter import Adapter
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.pretrained import Pretrained

Direction = Literal["lower", "higher"]  # the better value of a metric


class Run(Protocol):
    """What a task reads of a run: `gpt2x.train.decision.Decision` has it."""

    @property
    def config(self) -> TrainConfig:
        """The configuration of `train.py`."""

    @property
    def model(self) -> ModelConfig:
        """The model with its vocabulary and its head."""

    @property
    def data(self) -> PreparedData:
        """What `Task.prepare` returned."""

    @property
    def train_split(self) -> Split:
        """The training rows."""


class Baseline(NamedTuple):
    """What a model that reads nothing reaches on the validation split.

    Attributes:
        name: its name in the legend of the loss curve.
        loss: in nats per unit of the task.
        key: title of its line in the start panel.
        text: text of that line.
        comparison: end of the last line of a run.
    """

    name: str
    loss: float
    key: str
    text: str
    comparison: str


class Validates(Protocol):
    """A validation, created once and run many times."""

    def run(self, before_round: Callable[[], None]) -> dict[str, float]:
        """Return the values of `Task.metrics` by name, the same on every process.

        Args:
            before_round: is called before each batch, as often on every process; it may raise, to break off.
        """


class StatedInFull:
    """Base of a contract whose implementations define every member in their own class body.

    An abstract base class would accept what a subclass inherits from a finished one. That is how a task once validated
    with the targets of its parent.
    """

    contract: ClassVar[type]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Reject an incomplete implementation when its class is defined.

        Raises:
            UserError: a member of the contract is missing.
        """
        super().__init_subclass__(**kwargs)
        if StatedInFull in cls.__bases__:
            cls.contract = cls
            return
        missing = [name for name in members(cls.contract) if name not in vars(cls)]
        if missing:
            raise UserError(
                f"{cls.__module__}.{cls.__qualname__} does not define {', '.join(missing)}. Each "
                f"{cls.contract.__name__} defines every member itself; to do the same as another one, call it."
            )


def members(contract: type) -> list[str]:
    """Return the names that an implementation must define: annotated attributes and abstract methods."""
    methods = [name for name, value in vars(contract).items() if getattr(value, "__isabstractmethod__", False)]
    return [*vars(contract).get("__annotations__", {}), *methods]


class Inference(StatedInFull):
    """What `evaluate.py` and `predict.py` do with one kind of model."""

    @abstractmethod
    def serves(self, model: ModelConfig) -> bool:
        """Return True if `model` is of this kind; exactly one kind serves a model."""

    @abstractmethod
    def measurement(self, config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer) -> Measurement:
        """Return what `evaluate.py` measures; raise UserError for everything that the user can correct."""

    @abstractmethod
    def check_prompts(
        self,
        config: PredictConfig,
        prompts: Sequence[Prompt],
        source: WeightsSource,
        adapters: Sequence[Adapter],
        model: ModelConfig,
    ) -> None:
        """Raise UserError for prompts or a layout that `predict` cannot serve; no weights are read."""

    @abstractmethod
    def predict(
        self,
        config: PredictConfig,
        prompts: list[Prompt],
        pretrained: Pretrained,
        adapters: Sequence[Adapter],
        mesh: Mesh,
        lines: Lines | None,
    ) -> str:
        """Answer prompts, as JSON `lines` or on the terminal if None; return a summary in one line.

        Every process makes this call. A count in the summary counts each prompt once, however many ranks computed it.
        """


@dataclass(frozen=True)
class NoSettings:
    """The settings of a task that has none."""


class Task(StatedInFull):
    """What `task.objective` chooses."""

    unit: str  # what the loss is a mean over: "token", "text"
    rows: str  # what a row of the data is called: "blocks", "texts"
    metrics: Mapping[str, Direction]  # of a validation, by name; trainer.best_metric is one of them
    samples_text: bool  # True if the model can complete trainer.sample_prompts while it trains
    inference: Inference
    settings: type  # dataclass of task.settings; `NoSettings` if the task has none

    @abstractmethod
    def check(self, config: TrainConfig) -> None:
        """Raise UserError for a configuration that this task cannot train; nothing is read or written."""

    @abstractmethod
    def row_form(self, config: TrainConfig) -> RowForm:
        """Return how the text of a source becomes rows of token ids."""

    @abstractmethod
    def fit_model(self, model: ModelConfig, data: PreparedData | None, loaded: ModelConfig | None) -> ModelConfig:
        """Return `model` with the head that this task trains.

        Args:
            model: as configured.
            data: None before they are prepared; then the head's tensors have their names, not yet their sizes.
            loaded: the model of load=, or None.

        Raises:
            UserError: the loaded model cannot become it.
        """

    @abstractmethod
    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """Return a Cell of (ids (B, T + 1) int32, weights (B, T) fp32, randomness, starts) -> scalar fp32.

        Pipeline stages and graphs per block call its method `of_hidden` with (hidden (B, T, D), ids, weights).
        """

    @abstractmethod
    def inputs(self, config: TrainConfig, batch: Batch) -> Inputs:
        """Return what `loss` takes of a batch, with a 1 for each unit that counts."""

    @abstractmethod
    def global_units(self, config: TrainConfig) -> int:
        """Return the units of a full global batch, by which the loss is divided."""

    @abstractmethod
    def validation(self, run: Run, net: Any, mesh: Mesh) -> Validates:
        """Return the validation by all processes."""

    @abstractmethod
    def describe(self, split: Split) -> str:
        """Return the size of a split in one line."""

    @abstractmethod
    def baseline(self, run: Run) -> Baseline | None:
        """Return what a model that reads nothing reaches, or None if it is not computed."""

    @abstractmethod
    def summary(self, metric: str, best: float) -> str:
        """Return the best validation in words."""

    def prepare(self, config: TrainConfig, checkpoint_tokenizer: Tokenizer | None) -> PreparedData:
        """Return the rows of a run, from the cache or new ones.

        Args:
            config: the configuration of `train.py`.
            checkpoint_tokenizer: the tokenizer of a loaded checkpoint, or None.

        Raises:
            UserError: wrong input; nothing incomplete is left in the cache.
        """
        from gpt2x.data.prepare import prepare

        return prepare(
            config.dataset,
            config.tokenizer,
            self.row_form(config),
            cache=Path(config.paths.cache),
            checkpoint_tokenizer=checkpoint_tokenizer,
        )

    def is_better(self, metric: str, value: float, best: float) -> bool:
        """Return True if `value` of `metric` is strictly better than `best`."""
        return value < best if self.metrics[metric] == "lower" else value > best
