"""What modules say through `logging`, because they also run in the processes of others, on gpt2x's own streams."""

from __future__ import annotations

import logging

from gpt2x.runtime.console import stderr

LOGGER = "gpt2x"


class Shown(logging.Handler):
    """Prints each warning once, as one line on standard error and in the run's log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless the same text was printed; what `load=` names is opened several times."""
        text = record.getMessage()
        if text not in self._texts:
            self._texts.add(text)
            stderr.warn(text)


def handle_log_records(*, are_shown: bool) -> None:
    """Decide what becomes of the package's log records in this process; call it before Hydra composes.

    The logger gets a level of its own, because Hydra sets that of the root logger to silence itself
    (conf/hydra/hydra_logging/quiet.yaml).

    Args:
        are_shown: False in a process of several, whose launcher has shown them.
    """
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.WARNING)
    logger.handlers[:] = [Shown() if are_shown else logging.NullHandler()]
