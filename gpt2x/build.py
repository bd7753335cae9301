"""What each entry point runs; imports wait until then, so that a typing mistake is answered at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt2x.runtime.interrupt import deliver_interrupts


def _train(config: Any) -> None:
    deliver_interrupts()
    from gpt2x.train.run import run

    run(config)


def _evaluate(config: Any) -> None:
    deliver_interrupts()
    from gpt2x.evaluate.run import run

    run(config)


def _predict(config: Any) -> None:
    deliver_interrupts()
    from gpt2x.generate.run import run

    run(config)


RUNS: dict[str, Callable[[Any], None]] = {"train": _train, "evaluate": _evaluate, "predict": _predict}
