"""Which process holds what: every value of every tensor exactly once where it counts, whatever the layout."""

from collections import Counter

import numpy as np
import pytest

from gpt2x.config import ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates, stage_layers, world_size
from gpt2x.model.stats import tensor_shapes
from gpt2x.parallel.placement import holds, local_weights, owns, placements, shard_rows

LAYOUTS = [
    ParallelConfig(name="test", data=data, tensor=tensor, pipeline=pipeline, optimizer_shards=shards, vocab_parallel=v)
    for data, tensor, pipeline, shards, v in (
        (1, 1, 1, 1, True), (2, 1, 1, 1, True), (4, 1, 1, 2, True), (4, 1, 1, 4, True), (1, 2, 1, 1, True),
        (1, 8, 1, 1, True), (1, 4, 1, 1, False), (1, 1, 2, 1, True), (1, 1, 3, 1, True), (2, 2, 2, 1, True),
        (2, 2, 3, 2, True), (4, 2, 2, 2, False), (3, 4, 1, 3, True),
    )
]  # fmt: skip
MODELS = [
    # 41 rows, padded to 48: of eight processes the seventh holds five, the last none
    ModelConfig(
        name="test", num_layers=3, num_heads=8, hidden_size=16, max_seq_len=10, vocab_size=41, pad_vocab_multiple=8,
        tie_embeddings=tied,
    )
    for tied in (True, False)
]  # fmt: skip


def describe(value):
    if isinstance(value, ModelConfig):
        return "tied" if value.tie_embeddings else "untied"
    return f"dp{value.data}_tp{value.tensor}_pp{value.pipeline}_shards{value.optimizer_shards}_{value.vocab_parallel}"


@pytest.fixture(params=LAYOUTS, ids=describe)
def all_coordinates(request):
    return [Coordinates(request.param, rank) for rank in range(world_size(request.param))]


@pytest.fixture(params=MODELS, ids=describe)
def model(request):
    return request.param


def numbered(model):
    """Logical tensors, every value another one, none of them zero as the padding is."""
    return {
        name: np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
        for name, shape in tensor_shapes(model).items()
    }


def boxed(shape, placed):
    """How often each value of a tensor is in the boxes of some placements."""
    counts = np.zeros(shape, int)
    for placement in placed:
        for box in placement.boxes:
            counts[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))] += 1
    return counts


def test_owners_cover_each_weight_once(model, all_coordinates):
    for name, shape in tensor_shapes(model).items():
        for data in range(all_coordinates[0].parallel.data):
            replica = [coordinates for coordinates in all_coordinates if coordinates.data == data]
            owned = [
                placements(model, coordinates)[name]
                for coordinates in replica
                if owns(name, coordinates) and holds(name, model, coordinates)
            ]
            assert (boxed(shape, owned) == 1).all(), name


def test_shards_cover_each_state_once(model, all_coordinates):
    for name, shape in tensor_shapes(model).items():
        shards = all_coordinates[0].parallel.optimizer_shards
        states = []
        for coordinates in all_coordinates:
            if coordinates.data < shards and owns(name, coordinates) and holds(name, model, coordinates):
                placement = placements(model, coordinates)[name]
                rows = shard_rows(placement.shape, coordinates)
                if rows is not None:
                    states.append(placement.rows(rows.start, rows.stop))
                elif coordinates.data == 0:
                    states.append(placement)
        assert (boxed(shape, states) == 1).all(), name


def test_a_stage_has_its_layers_and_the_ends_theirs(model, all_coordinates):
    parallel = all_coordinates[0].parallel
    for coordinates in all_coordinates:
        names = set(placements(model, coordinates))
        layers = stage_layers(model.num_layers, parallel.pipeline, coordinates.stage)
        assert {int(name.split(".")[1]) for name in names if name.startswith("h.")} == set(layers)
        assert ("wpe.weight" in names) == coordinates.is_first_stage
        assert ("ln_f.weight" in names) == coordinates.is_last_stage
        assert ("wte.weight" in names) == (
            coordinates.is_first_stage or (model.tie_embeddings and coordinates.is_last_stage)
        )
        assert ("lm_head.weight" in names) == (coordinates.is_last_stage and not model.tie_embeddings)


def test_local_tensors_come_back_as_they_were(model, all_coordinates):
    weights = numbered(model)
    found = {name: np.zeros(value.shape, np.float32) for name, value in weights.items()}
    padding = Counter()
    for coordinates in all_coordinates:
        placed = placements(model, coordinates)
        for name, value in local_weights(weights, placed).items():
            assert value.shape == placed[name].shape
            for start, part in placed[name].parts(value):
                found[name][tuple(slice(a, a + n) for a, n in zip(start, part.shape, strict=True))] = part
            padding[name] += int((value == 0).sum())
    for name, value in weights.items():
        assert np.array_equal(found[name], value), name
    copies = sum(holds("wte.weight", model, coordinates) for coordinates in all_coordinates)
    if all_coordinates[0].parallel.vocab_parallel:
        copies //= all_coordinates[0].parallel.tensor
    assert padding["wte.weight"] == copies * 7 * model.hidden_size, "7 rows of zeros"
    assert not any(count for name, count in padding.items() if name not in ("wte.weight", "lm_head.weight"))


def test_heads_stay_whole():
    """A process' queries, keys and values are those of the same heads: the matrix is three matrices side by side."""
    model, count = MODELS[0], 4
    weights = numbered(model)
    name, width = "h.1.attn.c_attn.weight", model.hidden_size // count
    parallel = ParallelConfig(name="test", tensor=count)
    for rank in range(count):
        local = local_weights(weights, placements(model, Coordinates(parallel, rank)))[name]
        heads = [weights[name][:, third * 16 + rank * width : third * 16 + (rank + 1) * width] for third in range(3)]
        assert np.array_equal(local, np.concatenate(heads, axis=1))


@pytest.mark.parametrize(("num_layers", "pipeline"), [(4, 2), (3, 2), (5, 4), (48, 16), (7, 3), (4, 4)])
def test_layers_are_shared_out_evenly(num_layers, pipeline):
    stages = [stage_layers(num_layers, pipeline, stage) for stage in range(pipeline)]
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    sizes = [len(stage) for stage in stages]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True), "the last stage also has the head"


def test_ranks_and_places(all_coordinates):
    """Tensor fastest, then data, then pipeline; `rank_at` leads to the place it names."""
    seen = [(coordinates.stage, coordinates.data, coordinates.tensor) for coordinates in all_coordinates]
    assert seen == sorted(seen)
    assert len(set(seen)) == len(all_coordinates)
    for coordinates in all_coordinates:
        for other in all_coordinates:
            assert coordinates.rank_at(data=other.data, tensor=other.tensor, stage=other.stage) == other.rank
        assert coordinates.rank_at() == coordinates.rank
