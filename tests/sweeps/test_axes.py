"""Axes and the experiment that they make."""

import pytest

from wsm_jax.errors import UsageError
from wsm_jax.sweeps import Sweep, axis, chain, product, zipped

SEEDS = axis("config.seed", [0, 1])


def test_product_zip_and_chain():
    a, b = axis("merge.count", [2, 4]), axis("merge.interval", [20, 10])
    assert [tuple(p.values()) for p in product(a, b)] == [(2, 20), (2, 10), (4, 20), (4, 10)]
    assert [tuple(p.values()) for p in zipped(a, b)] == [(2, 20), (4, 10)]
    assert [tuple(p.values()) for p in chain(zipped(a, b), product(a, b))][1:3] == [(4, 10), (2, 20)]


def test_points_become_runs_and_arms():
    rates = axis("config.optimizer.peak_lr", [0.001, 0.002])
    made = Sweep("s", "configs/tiny.py", product(SEEDS, rates, axis("merge.count", [2, 4]))).experiment()
    assert list(made.runs) == ["peak_lr=0.001", "peak_lr=0.002"]
    assert list(made.arms)[:3] == ["peak_lr=0.001 last", "peak_lr=0.001,count=2", "peak_lr=0.001,count=4"]
    assert made.seeds == [0, 1]
    assert made.arms["peak_lr=0.002,count=4"].merge == {"count": 4}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: axis("count", [1]), "config.FIELD or merge.FIELD"),
        (lambda: axis("merge.count", []), "no values"),
        (lambda: axis("merge.curve", "linear"), "write a list"),
        (lambda: product(SEEDS, SEEDS), "'config.seed' are combined"),
        (lambda: zipped(SEEDS, axis("merge.count", [1])), "equally long, not 1, 2"),
        (lambda: Sweep("s", "c", []).experiment(), "no points"),
        (lambda: Sweep("s", "c", chain(SEEDS, SEEDS)).experiment(), "twice at seed 0"),
        (
            lambda: Sweep("s", "c", chain(SEEDS, [{"config.seed": 1, "merge.count": 2}])).experiment(),
            "seed 1 has other points than seed 0",
        ),
    ],
)
def test_axes_that_make_no_sweep_are_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()
