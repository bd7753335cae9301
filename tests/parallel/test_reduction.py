"""Buckets give back what they were given, however many there are."""

import numpy as np
import pytest
from mindspore import Tensor

from gpt2x.parallel.collectives import AllReduce
from gpt2x.parallel.reduction import RUN, Buckets
from gpt2x.runtime.device import set_up_device
from tests.models import CPU


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
