"""Slices by name: what they are, and which are refused."""

import pytest

from wsm_jax import UsageError
from wsm_jax.parallel import chips, topologies


@pytest.mark.parametrize(
    ("name", "count", "link"),
    [
        ("v5p:4x4x8", 128, 600e9),
        ("v5e:16x16", 256, 200e9),
        ("v6e:1x1", 1, 400e9),
        ("h100:8", 8, 450e9),
        ("h100:16", 16, 50e9),
    ],
)
def test_a_slice_by_name(name, count, link):
    found = topologies.parse(name)
    assert (found.count, found.link) == (count, link)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("v9:2x2", r"unknown topology 'v9:2x2'; known, with the largest shape: v5e:16x16, v5p:16x16x24, v6e"),
        ("v5e", r"unknown topology 'v5e'; write v5e:SHAPE, at most v5e:16x16"),
        ("v5e:2x0", r"unknown topology 'v5e:2x0'; write"),
        ("v5e:2x2x2", r"topology 'v5e:2x2x2' has 3 dimensions, not 2 as v5e:16x16"),
        ("v5e:32x8", r"topology 'v5e:32x8' is no slice; the largest is v5e:16x16$"),
        ("h100:12", r"topology 'h100:12' is no slice; the largest is h100:8; more than 8 come in multiples of it"),
    ],
)
def test_what_is_no_slice_is_refused(name, line):
    with pytest.raises(UsageError, match=line):
        topologies.parse(name)


def test_every_chip_says_where_its_figures_are_from():
    for chip in chips.CHIPS.values():
        assert chip.source.startswith("https://") and chips.peak_of(chip.kind) == chip.flops


def test_programs_are_made_for_another_platform_only_within():
    assert chips.backend() == "cpu"
    with chips.programs_for("tpu"):
        assert chips.backend() == "tpu"
    assert chips.backend() == "cpu"
