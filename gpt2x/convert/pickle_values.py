"""Read a pickle as plain data, with a budget: of the bytes, of the opcodes and of what they may name.

Python's unpickler calls whatever a pickle names, and trusts its numbers: 140 bytes make it allocate a gigabyte, and a
tuple that holds itself twice, thirty times over, never ends to be hashed. So the opcodes are carried out here, with
Python's own parser of them (pickletools). What they may name is a table of the caller's; each value costs an opcode,
and keys of dicts are texts or numbers.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Sequence
from typing import IO, Any, cast

from gpt2x.runtime import limits

Find = Callable[[str, str], Any]  # (module, name) -> a stand-in that REDUCE may call; raises for any other name
PersistentLoad = Callable[[Any], Any]  # what identifies an object that is stored beside the pickle -> what it becomes
PUSHED = {  # opcodes whose argument is the value
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
SCALARS = (str, int, float, bytes, type(None))  # whose hash takes no time
MAX_ARGUMENTS = 16  # of a call; rebuilding a tensor takes 7


def load(stream: IO[bytes], find: Find, persistent_load: PersistentLoad) -> Any:
    """Return the value of the next pickle in a stream, after which the stream stands then.

    Args:
        stream: of the file.
        find: see `Find`.
        persistent_load: see `PersistentLoad`.

    Raises:
        UnpicklingError: it exceeds a limit, or has an opcode that plain data do not need.
        ValueError, LookupError, TypeError: it is damaged.
    """
    machine = _Machine(find, persistent_load)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], _Bounded(stream)))):
        if count >= limits.PICKLE_OPCODES:
            raise pickle.UnpicklingError(f"its pickle has more than {limits.PICKLE_OPCODES:,} opcodes")
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    return machine.stack.pop()


def require_scalars(values: Sequence[Any]) -> None:
    """Raise UnpicklingError unless all values are texts, bytes, numbers or nothing."""
    for value in values:
        if not isinstance(value, SCALARS):
            raise pickle.UnpicklingError(f"a {type(value).__name__} is where a text or a number has to be")


def filled(table: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    """Return a table after values have been set."""
    require_scalars(keys)
    table.update(zip(keys, values, strict=True))
    return table


class _Bounded:
    """A stream of which a limited number of bytes can be read, whatever a length in it claims."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, limits.PICKLE_BYTES

    def read(self, count: int) -> bytes:
        self._spend(count)
        return self._stream.read(count)

    def readline(self) -> bytes:
        line = self._stream.readline(self._left + 1)
        self._spend(len(line))
        return line

    def tell(self) -> int:
        return limits.PICKLE_BYTES - self._left

    def _spend(self, count: int) -> None:
        if count > self._left:
            raise pickle.UnpicklingError(f"its pickle has more than {limits.PICKLE_BYTES:,} bytes")
        self._left -= count


class _Machine:
    """The stack machine of pickles; Lib/pickletools.py of CPython describes the opcodes."""

    def __init__(self, find: Find, persistent_load: PersistentLoad) -> None:
        self.find, self.persistent_load = find, persistent_load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out an opcode that makes a value or moves one."""
        stack = self.stack
        if name in PUSHED:
            stack.append(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name == "LIST":
            stack.append(self.marked())
        elif name == "DICT":
            values = self.marked()
            stack.append(filled({}, values[::2], values[1::2]))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME"):
            self.change(name, argument)

    def change(self, name: str, argument: Any) -> None:
        """Carry out an opcode that changes a value, or that asks for what is no plain data."""
        stack = self.stack
        if name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else self.marked()
            self.target(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self.marked()
            filled(self.target(dict), values[::2], values[1::2])
        elif name == "ADDITEMS":
            values = self.marked()
            require_scalars(values)
            self.target(set).update(values)
        elif name == "GLOBAL":
            stack.append(self.find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            names = stack[-2:]
            require_scalars(names)
            stack[-2:] = [self.find(*map(str, names))]
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
                raise pickle.UnpicklingError("it calls something with impossible arguments")
            stack.append(function(*arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of a table, such as the versions of its modules
            self.target(dict)
        elif name == "BINPERSID":
            stack.append(self.persistent_load(stack.pop()))
        else:
            raise pickle.UnpicklingError(f"it has the opcode {name}, which weights do not need")

    def marked(self) -> list[Any]:
        """Remove what was pushed since the last mark, and return it."""
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def target(self, kind: type) -> Any:
        """Return the value on top of the stack, which has to be of a kind."""
        if not isinstance(self.stack[-1], kind):
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-1]).__name__} like a {kind.__name__}")
        return self.stack[-1]
