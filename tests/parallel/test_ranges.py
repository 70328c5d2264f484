"""Blocks as ranges: every element once, in order; and which cut gives few of them."""

import itertools

import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wsm_jax.parallel import ranges

MESH = AbstractMesh((2, 4, 3), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize("shape", [(), (6,), (4, 6), (3, 4, 6), (0, 4)])
def test_ranges_are_the_elements_of_the_block_in_order(shape):
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    parts = [[slice(None), slice(0, size // 2), slice(size // 2, size)] for size in shape]
    for index in itertools.product(*parts):
        starts, length = ranges.of(shape, index)
        found = np.concatenate([np.empty(0, int), *(np.arange(start, start + length) for start in starts)])
        np.testing.assert_array_equal(found, whole[index].reshape(-1))


@pytest.mark.parametrize(
    ("shape", "now", "then"),
    [
        ((8, 12, 6), P("fsdp"), P("fsdp")),  # rows already
        ((8, 12, 6), P(None, "fsdp"), P("fsdp")),
        ((24, 12, 6), P(None, "fsdp", "tensor"), P(("fsdp", "tensor"))),
        ((13, 24, 6), P(None, "tensor", "fsdp"), P(None, ("tensor", "fsdp"))),  # a range for each of 13 layers
        ((50257, 768), P(None, "fsdp"), P()),  # no 50257 files for each device
        ((6, 5), P(None, ("tensor", "fsdp")), P("tensor")),  # some devices have the same
    ],
)
def test_a_leaf_is_cut_along_the_first_dimension_that_can_be_shared(shape, now, then):
    assert ranges.as_ranges(NamedSharding(MESH, now), shape) == NamedSharding(MESH, then)
