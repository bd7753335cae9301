"""Limits on what is read of files that somebody else wrote: each with its reason, checked before anything is read.

A file may claim more than it holds: a nesting without end, a layer count of a billion, a table of one byte per entry
that needs a hundred bytes of memory per entry. A limit is far above what a GPT-2 has, and low enough that a file
beyond it costs neither memory (`MEMORY_BYTES` at most) nor more than some seconds.
"""

from __future__ import annotations

import stat
from pathlib import Path

from gpt2x.errors import UserError

MIB = 1 << 20
MEMORY_BYTES = 256 * MIB  # that the plain data of one file may take; the largest published tokenizers need 230 MB
JSON_BYTES = 64 * MIB  # of one JSON file beside data; tokenizers of 256,000 tokens have 35 MB
TEXT_BYTES = 64 * MIB  # of merges.txt or vocab.txt; GPT-2's has 0.5 MB
YAML_BYTES = MIB  # of a configuration or a template; MindFormers' have 10 kB
DEPTH = 64  # of lists and objects within each other; configurations have 6, tokenizers 8
NUMBER_DIGITS = 300  # of a whole number; one of 309 digits is no float
YAML_NODES = 100_000  # of a YAML file, aliases counted as often as they occur
HEADER_BYTES = 32 * MIB  # of a safetensors file's header; a GPT-2 of 48 layers has 60 kB
TENSORS = 200_000  # of one file; a GPT-2 of 48 layers has 580, its optimizer twice as many
RECORDS = 50_000  # of a file of MindSpore: one per parameter, and one per 512 MiB of a larger one
DIMS = 8  # of a tensor; MindSpore and safetensors files of a GPT-2 have up to 4
DIM = 1 << 40  # of one dim of a tensor; the product of 8 is a whole number of 320 bits
PICKLE_BYTES = 32 * MIB  # of the description of a torch.save file; a GPT-2's has 20 kB
PICKLE_OPCODES = 1_000_000  # of it; a tensor takes about 20
PICKLE_VALUES = 1_000_000  # that its memo and stack hold; an index beyond makes Python's unpickler take gigabytes
STRATEGY_BYTES = 8 * MIB  # of a strategy file of MindSpore; 600 parameters take 40 kB
STRATEGY_SLICES = 2_000_000  # parameters of a strategy file, times the ranks that divide each of them
RANKS = 1 << 14  # of one stage of a pipeline
WORD_CHARS = 1 << 22  # of a text without a blank or newline, within which it cannot be cut
UNPACKED_RATIO = 250  # bytes that gzip makes of one, at most; of texts it makes 3 to 20
UNPACKED_BYTES = 64 * MIB  # from which on the ratio counts
JSON_TABLE_RATIO = 8  # memory of a .json of rows, per byte of the file; of rows with texts it is 3


def size_of(path: Path, limit: int, fix: str) -> int:
    """Return the bytes of a file that is read whole, after checking that it is one and is not too large.

    Raises:
        UserError: it is a pipe, a device or a directory, does not exist, or has more than `limit` bytes.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}). {fix}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file. {fix}")
    if status.st_size > limit:
        raise UserError(
            f"{path} has {status.st_size:,} bytes; a file of its kind has at most {limit:,}, and more are not read. "
            f"{fix}"
        )
    return status.st_size


def read_bytes(path: Path, limit: int, fix: str) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises:
        UserError: as `size_of`, or the file cannot be read.
    """
    size_of(path, limit, fix)
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}). {fix}") from error
    if len(content) > limit:  # files of /proc have no size
        raise UserError(f"{path} has more than {limit:,} bytes, which are not read. {fix}")
    return content


def memory_of_json(text: str) -> int:
    """Return about how many bytes the value of a JSON text takes in Python; more, if its texts have the signs of JSON.

    An object takes 200 bytes, a list 100, an element of either 32, a text 56 beside its characters.
    """
    count = text.count
    return 2 * len(text) + 200 * count("{") + 100 * count("[") + 32 * count(",") + 28 * count('"')


def is_deeper(value: object, limit: int) -> bool:
    """Return whether lists and dicts stand within each other more than `limit` times."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(limit):
        inner = (one for each in level for one in (each.values() if isinstance(each, dict) else each))
        level = [one for one in inner if isinstance(one, list | dict)]
    return bool(level)
