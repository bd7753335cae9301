"""Ask MindSpore's own Ascend plugin which operators it has kernels for; `python -m tests.ascend.kernels OPERATOR...`.

`python -m tests.ascend.kernels --table` prints how often each is in graphs of `TABLE` (docs/ascend.md).

MindSpore 2.10's wheel for x86-64 carries its Ascend plugin; only two of Huawei's libraries are missing. This module
writes empty libraries in their place, loads the plugin, and calls its two look-ups: whether an operator is launched
through aclnn, and whether the older path, ACL, knows it. An operator with neither fails on a device.

Proven: names. Not proven: types, shapes, values or speed. The symbols are those of MindSpore 2.10.0; gcc and binutils
are needed. The look-ups load libraries for good, hence a process of their own (`find_kernels`).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.ascend.frontend import ROOT, OldString
from tests.ascend.runs import Reports, compile_all

IS_ACLNN = "_ZN9mindspore6kernel19IsRegisteredAclnnOpERKSs"  # bool kernel::IsRegisteredAclnnOp(const string &)
FIND_ADAPTER = "_ZN9mindspore6device6ascend11FindAdapterERKSsb"  # shared_ptr device::ascend::FindAdapter(string, bool)
LOADED_BEFORE = (
    "core", "common", "ops", "backend_common", "pyboost", "cluster", "hardware_abstract", "runtime_utils", "profiler",
)  # fmt: skip
SYSTEM = re.compile(r"lib(stdc|m\.|gomp|gcc|pthread|c\.|dl|rt)|ld-linux|linux-vdso")
NOT_LAUNCHED = {"Depend", "Load", "MakeTuple", "Partial", "Reshape", "Switch", "TupleGetItem", "UpdateState"}
ON_HOST = {"TensorToScalar", "TensorToTuple"}  # values that operators take from the host: rates, lengths of sequences
COMMUNICATION = {"AllGather", "AllReduce", "ReduceScatter"}  # kernels of Huawei's communication library
TABLE: dict[str, tuple[str, str | None]] = {  # column: a case of `frontend`, and the case that is subtracted from it
    "13B, one block": ("train_13b_2_layers", "train_13b_1_layer"),
    "GPT-2 small": ("train_small", None),
    "with dropout": ("train_small_dropout", None),
    "decode a token": ("decode_small", None),
}
SECTION = "## Operators without an aclnn kernel"  # of docs/ascend.md


def libraries() -> Path:
    """Return the directory of MindSpore's libraries."""
    import mindspore  # which also loads libraries that the others need

    return Path(mindspore.__file__).parent / "lib"


def plugin() -> list[Path]:
    """Return the plugin's libraries: the look-up of ACL, communication, the look-up of aclnn."""
    lib = libraries() / "plugin"
    names = ("ascend/libmindspore_ascend_res_manager.so", "ascend/libd_collective.so", "libmindspore_ops_ascend.so")
    return [lib / name for name in names]


def symbols(path: Path, flag: str) -> set[str]:
    """Return the dynamic symbols that a library defines or lacks."""
    done = subprocess.run(["nm", "-D", flag, path], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines() if line.strip()}


def needed_by(path: Path) -> list[str]:
    """Return the names of the libraries that a library loads."""
    done = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    return re.findall(r"NEEDED.*\[(.*)\]", done.stdout)


def missing_libraries() -> tuple[list[str], set[str]]:
    """Return the libraries that the plugin needs and this machine lacks, and the symbols that no other one defines."""
    files, present, missing = plugin(), set(), []
    todo, seen = [name for path in files for name in needed_by(path)], {path.name for path in files}
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        path = libraries() / name
        if path.exists():
            present |= symbols(path, "--defined-only")
            todo += needed_by(path)
        elif not SYSTEM.match(name):
            missing.append(name)
    own = {path: symbols(path, "--defined-only") for path in files}
    lacking = {path: symbols(path, "--undefined-only") for path in files}
    present |= set.union(*own.values())
    undefined = set.union(*lacking.values()) - present
    undefined |= lacking[files[0]] & (own[files[1]] | own[files[2]])  # the first is loaded before the others
    for path in (libraries() / "plugin" / "ascend").rglob("libshmem.so"):
        undefined |= symbols(path, "--undefined-only") - present
    return missing, undefined


def write_empty_libraries(folder: Path) -> list[Path]:
    """Write the missing libraries; the first of them defines all missing symbols as functions that return an object."""
    missing, undefined = missing_libraries()
    system = [ctypes.CDLL(name) for name in (None, "libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1")]
    absent = sorted(
        name for name in undefined if not name.startswith("_ITM") and not any(hasattr(lib, name) for lib in system)
    )
    lines = ['.section .note.GNU-stack,"",@progbits', ".text"]
    for number, name in enumerate(absent):
        lines += [f".globl {name}", f".type {name},@function", f"{name}:", f" leaq object{number}(%rip),%rax", " ret"]
    lines += [".data", ".align 64"]
    for number in range(len(absent)):
        lines.append(f"object{number}: .quad 0,0,0,object{number}+8,object{number}+8,0\n .zero 464")
    source = folder / "symbols.s"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, name in enumerate(missing):
        code = ["-xc", os.devnull] if number else [str(source)]
        subprocess.run(["gcc", "-shared", "-o", folder / name, f"-Wl,-soname,{name}", *code], check=True)
    return [folder / name for name in missing]


def look_up(operators: list[str]) -> dict[str, tuple[bool, bool]]:
    """Return of each operator whether it has an aclnn kernel and whether ACL knows it; in a process of its own."""
    flags = os.RTLD_LAZY | os.RTLD_GLOBAL
    for name in LOADED_BEFORE:
        ctypes.CDLL(str(libraries() / f"libmindspore_{name}.so"), mode=flags)
    with tempfile.TemporaryDirectory() as folder:
        for path in write_empty_libraries(Path(folder)):
            ctypes.CDLL(str(path), mode=flags)
        manager, kernels = (ctypes.CDLL(str(path), mode=flags) for path in plugin()[::2])
    is_aclnn, find_adapter = getattr(kernels, IS_ACLNN), getattr(manager, FIND_ADAPTER)
    is_aclnn.argtypes, is_aclnn.restype = [ctypes.c_void_p], ctypes.c_bool
    find_adapter.argtypes, find_adapter.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_bool], ctypes.c_void_p
    found, names = {}, []  # the libraries may keep pointers to the names
    for operator in operators:
        name, adapter = OldString(operator), (ctypes.c_void_p * 2)()
        find_adapter(ctypes.addressof(adapter), name.address(), True)
        found[operator] = bool(is_aclnn(name.address())), bool(adapter[0])
        names.append(name)
    return found


def find_kernels(operators: set[str]) -> dict[str, tuple[bool, bool]]:
    """`look_up` in a new process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(libraries() / "plugin" / "ascend")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ascend.kernels", *sorted(operators)], env=environment, capture_output=True,
        text=True, timeout=300, check=True,
    )  # fmt: skip
    return {name: tuple(found) for name, found in json.loads(done.stdout.splitlines()[-1]).items()}


def counts(cases: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    """Return the launched operators of each column of `TABLE`."""
    columns = {}
    for column, (name, subtracted) in TABLE.items():
        column_counts = Counter(cases[name])
        column_counts.subtract(cases[subtracted] if subtracted else {})
        columns[column] = Counter({op: n for op, n in column_counts.items() if n and op not in NOT_LAUNCHED})
    return columns


def path_of(operator: str, kernels: dict[str, tuple[bool, bool]]) -> str:
    """Return by what an operator is launched."""
    if operator in ON_HOST:
        return "host"
    if operator in COMMUNICATION:
        return "HCCL"
    has_aclnn, has_acl = kernels[operator]
    return "aclnn" if has_aclnn else "ACL" if has_acl else "none"


def table(columns: dict[str, Counter[str]]) -> str:
    """Return how often each operator is in each column, as Markdown: by path, then by name; sums of paths first."""
    operators = set().union(*columns.values())
    kernels = find_kernels(operators)
    paths = {operator: path_of(operator, kernels) for operator in operators}
    lines = [f"| operator | path | {' | '.join(columns)} |", "|" + "---|" * (2 + len(columns))]
    for path in sorted(set(paths.values())):
        sums = [sum(n for operator, n in column.items() if paths[operator] == path) for column in columns.values()]
        lines.append(f"| all | {path} | {' | '.join(map(str, sums))} |")
    for operator in sorted(operators, key=lambda each: (paths[each], each)):
        found = " | ".join(str(column[operator] or "") for column in columns.values())
        lines.append(f"| {operator} | {paths[operator]} | {found} |")
    return "\n".join(lines)


def print_table() -> None:
    """Compile the cases of `TABLE`, and print the table."""
    names = list(dict.fromkeys(name for pair in TABLE.values() for name in pair if name))
    with tempfile.TemporaryDirectory() as folder:
        reports = compile_all("frontend", names, Path(folder), timeout_s=1700)
    print(table(counts({name: Counter(Reports(reports).of(name)) for name in names})))


def documented() -> set[str]:
    """Return the operators that docs/ascend.md lists with the reason why they stay without an aclnn kernel."""
    section = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8").split(SECTION)[1].split("\n##")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        print_table()
    else:
        print(json.dumps(look_up(sys.argv[1:])))
