"""What a row form is: how the text of a source becomes rows of token ids.

To add one, write a file in this package with a subclass of `RowForm` as `FORM`. L is the number of columns of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from gpt2x.config import DatasetConfig
from gpt2x.data.cache import code_hash
from gpt2x.data.mindrecord import RecordFiles, RowArrays, Split
from gpt2x.data.sources.base import Source
from gpt2x.data.template import Template
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

LEAST_LENGTH = 32


@dataclass(frozen=True)
class Part:
    """What the rows of one split are cut from.

    Attributes:
        source: Reads the text.
        split: train | val.
        tokenizer: Encodes the text.
        labels: Names of the classes in the order of their ids; empty if rows have no classes.
    """

    source: Source
    split: str
    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()


@dataclass
class Counts:
    """What a row form counts while it cuts rows; complete when all rows have been cut.

    Attributes:
        tokens: Tokens in rows, EOS included.
        documents: Documents or examples in rows.
        dropped_tokens: Tokens that are in no row.
        notes: What did not fit, for the user.
    """

    tokens: int = 0
    documents: int = 0
    dropped_tokens: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RowForm(ABC):
    """How rows are cut. Its fields are part of the cache key of the rows.

    Attributes:
        seq_len: Tokens that a model sees at once.
        noun: What a split consists of, for messages.
        description: Stored in the MindRecord files.
        exports: True if `open` reads rows that were written elsewhere.
        has_full_rows: True if all rows but a last one have seq_len tokens.
    """

    seq_len: int

    noun: ClassVar[str]
    description: ClassVar[str]
    exports: ClassVar[bool] = True
    has_full_rows: ClassVar[bool] = False

    @property
    @abstractmethod
    def row_len(self) -> int:
        """Number of columns of a row, L."""

    @abstractmethod
    def cut(self, part: Part, counts: Counts, on_chars: Callable[[int], None]) -> Iterator[RowArrays]:
        """Yield the rows of a part, several at a time, and count.

        Args:
            part: What to cut.
            counts: Updated.
            on_chars: Called with the number of characters just encoded.

        Raises:
            UserError: Nothing to cut rows from, or a source that is made for other rows.
        """

    def open(self, records: RecordFiles, tokenizer: Tokenizer, labels: tuple[str, ...]) -> Split:
        """Check MindRecord files written elsewhere by reading all of their rows once.

        Raises:
            UserError: Missing or damaged files, or rows of another form.
        """
        raise UserError(f"{records.key}: {self.noun} are not read from MindRecord files. Give their text instead.")

    def key(self) -> dict[str, Any]:
        """Return what the rows depend on besides text, tokenizer and labels."""
        return {"form": type(self).__name__, "code": code_hash(type(self)), **asdict(self)}

    def labels(self, dataset: DatasetConfig, source: Source | None, records: dict[str, RecordFiles]) -> tuple[str, ...]:
        """Return the names of the classes in the order of their ids; empty if rows have no classes."""
        return ()

    def check(self, part: Part) -> None:  # noqa: B027  (most forms have nothing to check)
        """Check a part before anything is cut from any.

        Raises:
            UserError: An example that cannot become a row of this form.
        """

    def template(self, source: Source | None) -> Template | None:
        """Return the template of the prompts in the rows; None if they have no prompts."""
        return None

    def layout(self, dataset: DatasetConfig) -> str:
        """Return in a few words how the text lies in rows, for a title."""
        return f"protocol {dataset.protocol}"


def padded_length(longest: int, seq_len: int) -> int:
    """Return the least power of two, from 32 on, that is not below `longest`; at most seq_len."""
    return min(max(LEAST_LENGTH, 1 << (longest - 1).bit_length()), seq_len)
