"""What this machine reaches at best, measured in the same run as the contestants and in a process like theirs.

Each is a contestant of `side_by_side`: its run measures once, the parent keeps the best of all rounds.

Legend: D hidden, V vocabulary; a shape is layers, heads, hidden, positions, vocabulary.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BANDWIDTH_BYTES = 1_228_800_000  # far beyond what caches hold
BANDWIDTH_COLUMNS = 7680


def products(shape: Sequence[int], tokens: int) -> list[tuple[int, int, int, int]]:
    """Matrix products of a training step as (rows, inner, columns, how many): of each linear and of the head the
    forward one, the gradient of its input and that of its weight.
    """
    layers, _, hidden, _, vocab = shape
    linears = [(hidden, 3 * hidden), (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)]
    found = []
    for size_in, size_out, count in [*((*linear, layers) for linear in linears), (hidden, vocab, 1)]:
        found += [(tokens, size_in, size_out, count), (tokens, size_out, size_in, count)]
        found += [(size_in, tokens, size_out, count)]
    return found


def matmul(options: argparse.Namespace, folder: Path) -> Callable[[Any], list[float]]:
    """Seconds of each of `products` once, fp32, by PyTorch into memory that is there already."""
    import torch

    torch.set_num_threads(options.threads)
    cases = []
    for rows, inner, columns, _ in products(options.shape, options.micro_batch_size * options.seq_len):
        cases.append((torch.ones(rows, inner), torch.ones(inner, columns), torch.empty(rows, columns)))

    def run(_: Any) -> list[float]:
        return [seconds(torch.mm, a, b, out=out) for a, b, out in cases]

    return run


def matmul_gflops(shape: Sequence[int], tokens: int, rounds: Sequence[Sequence[float]]) -> float:
    """The rate of all products of a step, each at the best of its rounds."""
    best = np.min(rounds, axis=0)
    flops = total = 0.0
    for (rows, inner, columns, count), least in zip(products(shape, tokens), best, strict=True):
        flops += count * 2.0 * rows * inner * columns
        total += count * float(least)
    return flops / total / 1e9


def bandwidth(options: argparse.Namespace, folder: Path) -> Callable[[Any], dict[str, float]]:
    """GB/s at which several kernels read 1.2 GB of fp32."""
    import torch

    torch.set_num_threads(options.threads)
    matrix = torch.ones(BANDWIDTH_BYTES // 4 // BANDWIDTH_COLUMNS, BANDWIDTH_COLUMNS)
    row, column = torch.ones(BANDWIDTH_COLUMNS), torch.ones(len(matrix))
    # numpy's own: the same memory, its own BLAS
    array, array_row, array_column = matrix.numpy(), row.numpy(), column.numpy()
    kernels = {
        "torch_sum": lambda: matrix.sum(),
        "torch_gemv": lambda: torch.mv(matrix, row),
        "torch_gemv_transposed": lambda: torch.mv(matrix.T, column),
        "numpy_sum": lambda: array.sum(),
        "numpy_gemv": lambda: array @ array_row,
        "numpy_gemv_transposed": lambda: array_column @ array,
    }

    def run(_: Any) -> dict[str, float]:
        return {
            name: BANDWIDTH_BYTES / min(seconds(kernel) for _ in range(2)) / 1e9 for name, kernel in kernels.items()
        }

    return run


def best_bandwidth(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each kernel's best."""
    return {name: max(found[name] for found in rounds) for name in rounds[0]}


def seconds(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    start = time.perf_counter()
    work(*arguments, **options)
    return time.perf_counter() - start
