"""Buckets give back what they were given, however many there are; a reduction of one tensor."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gpt2x.config import ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.ops.composed import square_sum
from gpt2x.parallel.collectives import AllReduce
from gpt2x.parallel.gradient_reduction import BUCKET_TENSORS, RUN, Buckets, GradientReduction, LocalParameter
from gpt2x.parallel.placement import whole
from gpt2x.runtime.device import set_up_device
from tests.support.models import CPU


@pytest.mark.run  # compiles up to 400 collectives
@pytest.mark.parametrize("count", [1, 3 * RUN + 5, 400], ids=["one", "several runs", "more than MindSpore nests"])
def test_buckets_of_one_and_of_many(count):
    """Sizes and capacity make every third tensor a bucket of its own and join the two behind it."""
    set_up_device(CPU)
    sizes = [(8, 3, 4)[index % 3] for index in range(count)]
    tensors = tuple(Tensor(np.full((1, size), index, np.float32)) for index, size in enumerate(sizes))
    buckets = Buckets(AllReduce(None), sizes, capacity=8)
    assert sum(len(run) for run in buckets.runs) == -(-2 * count // 3)
    for given, found in zip(tensors, buckets(tensors), strict=True):
        assert np.array_equal(given.asnumpy(), found.asnumpy())


@pytest.mark.run
def test_many_small_tensors():
    """As 40 layers of a small model, whose 484 tensors fit one bucket by their size."""
    set_up_device(CPU)
    tensors = tuple(Tensor(np.full((1, 2), index, np.float32)) for index in range(484))
    buckets = Buckets(AllReduce(None), [2] * len(tensors))
    assert sum(len(run) for run in buckets.runs) == -(-len(tensors) // BUCKET_TENSORS)
    for given, found in zip(tensors, buckets(tensors), strict=True):
        assert np.array_equal(given.asnumpy(), found.asnumpy())


@pytest.mark.run
def test_a_process_whose_only_tensor_counts_elsewhere_has_no_norm():
    """As the second of optimizer_shards=2 that trains a classifier's head of three rows alone."""
    set_up_device(CPU)
    coordinates = Coordinates(ParallelConfig(name="zero2", data=2, optimizer_shards=2), 1)
    groups = dict.fromkeys(("data", "shard", "replica", "norm", "tensor", "embedding"))
    parameter = Parameter(Tensor(np.ones((3, 4), np.float32)), name="score.weight")
    held = LocalParameter("score.weight", whole((3, 4)), parameter, parameter, None, True, False, False)
    reduction = GradientReduction([held], SimpleNamespace(coordinates=coordinates, **groups), square_sum)
    gradients, squares, *_ = reduction((Tensor(np.full((3, 4), 2, np.float32)),), Tensor(1.0), Tensor(1.0))
    assert np.array_equal(gradients[0].asnumpy(), np.full((3, 4), 2))
    assert squares.asnumpy() == 0
