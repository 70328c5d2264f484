"""The declaration of the main experiment: its claims on losses made by hand, and lengths that divide."""

import gzip
import itertools

import numpy as np
import pytest

from configs.standard import SIZES
from experiments import claims, parts, text


def test_windows_hold_at_most_so_many_checkpoints_and_are_as_long_as_asked():
    size = SIZES["standard"]
    for share, length, count in itertools.product((0.025, 0.05, 0.1, 0.2), (0.5, 1.0, 2.0), (4, 16, 32)):
        made = parts.window(share, size, "linear", count=count, length=length)
        assert made["count"] <= count
        assert made["count"] * made["interval"] == round(share * length * size.steps)
        assert made["interval"] % size.interval == 0


def test_of_many_answers_some_are_measured_which_are_spread_over_all(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "ANSWERS", 4)
    file = tmp_path / "mmlu.jsonl.gz"
    for count, kept in ((3, [0, 1, 2]), (10, [0, 3, 6, 9])):
        with gzip.open(file, "wt") as out:
            out.writelines(f"{number}\n" for number in range(count))
        some = text._some(file)
        assert list(map(int, gzip.open(some, "rt"))) == kept
        some.unlink()


def losses(name: str, domain: str) -> np.ndarray:
    """A longer merge or decay gains on old text what it loses on new text; merges are better there by 0.1."""
    kind = name.removeprefix("switched ")
    gain = {"2.5%": 0.1, "5%": 0.2, "10%": 0.3, "20%": 0.4}.get(kind.split()[-1], 0.0)
    if domain in claims.NEW:
        return np.array([2.0 + gain - 0.1 * kind.startswith("merge")])
    return np.array([3.0 - gain])


def test_the_frontier_is_the_distance_at_equal_loss_on_old_text():
    found = claims.primary(["a"])["2 frontier"].statistic(losses, [*claims.OLD, *claims.NEW, "gsm8k"])
    np.testing.assert_allclose(found, [-0.1], atol=1e-12)


@pytest.mark.parametrize("slope", [0.5, -0.5])
def test_substitutes_hold_where_a_merge_gains_less_at_a_lower_end(slope):
    def loss(name: str, domain: str) -> np.ndarray:
        end = float(name.removeprefix("end ").removesuffix(", merged"))
        return np.array([3.0 - (slope * end + 1) * name.endswith("merged")])

    found = claims.primary(["a"])["4 substitutes"].statistic(loss, claims.OLD)
    np.testing.assert_allclose(found, [-slope], atol=1e-12)


def test_the_exponent_is_that_of_the_gains():
    cells = {"a": 0.1, "b": 0.2, "c": 0.5}

    def loss(name: str, domain: str) -> np.ndarray:
        cell, kind = name.split()
        gain = {"last": 0.0, "decay": cells[cell], "merge": 0.8 * cells[cell] ** 0.7}[kind]
        return np.array([3.0 - gain])

    found = claims.primary(list(cells))["7 exponent"].statistic(loss, claims.OLD)
    np.testing.assert_allclose(found, [0.7 - 1], atol=1e-9)


def test_the_aware_merge_is_nearer_where_its_loss_is():
    losses = {"aware 5%": 2.1, "plain 5%": 2.3, "real 5%": 2.15}
    found = claims.primary(["a"])["6 weight decay"].statistic(lambda arm, _: np.array([losses[arm]]), claims.OLD)
    np.testing.assert_allclose(found, [0.05 - 0.15], atol=1e-12)
