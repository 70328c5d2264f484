"""What claims estimate beside :func:`wsm_jax.sweeps.difference`: a slope, a distance of two frontiers, an exponent.

Each is of losses at one seed, and works on arrays of losses, one with all documents and one without each.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from wsm_jax.sweeps.experiment import Loss, Statistic


def mean_loss(loss: Loss, arm: str, domains: Sequence[str]) -> np.ndarray:
    """The mean over domains, each of which counts alike."""
    return np.mean([loss(arm, domain) for domain in domains], axis=0)


def within(domains: Sequence[str], statistic: Statistic) -> Statistic:
    """A statistic of the losses on some domains alone, as :func:`wsm_jax.sweeps.difference` takes them."""
    return lambda loss, measured: statistic(loss, [each for each in measured if each in domains] or list(measured))


def slope(gains: Mapping[float, tuple[str, str]]) -> Statistic:
    """Least-squares slope of a difference of losses on a number.

    Args:
      gains: number -> (arm, minus).
    """
    x = np.array([*gains], np.float64)
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()

    def statistic(loss: Loss, domains: Sequence[str]) -> np.ndarray:
        y = [mean_loss(loss, arm, domains) - mean_loss(loss, minus, domains) for arm, minus in gains.values()]
        return sum(weight * each for weight, each in zip(weights, y, strict=True))  # pyrefly: ignore

    return statistic


def frontier(arms: Sequence[str], minus: Sequence[str], across: Sequence[str]) -> Statistic:
    """How far one frontier lies above another: the mean difference over their common range, interpolated linearly.

    Not finite where they have no common range.

    Args:
      arms: the points of a frontier, in any order.
      minus: the points of the other.
      across: domains whose mean loss is the abscissa; the mean loss of all others is the ordinate.
    """

    def statistic(loss: Loss, domains: Sequence[str]) -> np.ndarray:
        up = [domain for domain in domains if domain not in across]
        first, second = (
            np.stack([[mean_loss(loss, arm, names) for arm in points] for names in (across, up)])
            for points in (arms, minus)
        )
        return np.array([_apart(first[..., n], second[..., n]) for n in range(first.shape[-1])])

    return statistic


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of ``first`` minus ``second``, polygons [2, points], over the range that both have."""
    lines = [line[:, np.argsort(line[0])] for line in (first, second)]
    low, high = max(line[0, 0] for line in lines), min(line[0, -1] for line in lines)
    if low >= high:
        return np.nan
    knots = np.unique(np.clip(np.concatenate([line[0] for line in lines]), low, high))
    above = np.interp(knots, *lines[0]) - np.interp(knots, *lines[1])
    return float(np.trapezoid(above, knots) / (high - low))


def exponent(cells: Sequence[tuple[str, str, str]]) -> Statistic:
    """How fast one gain grows with another over cells, as an exponent, minus 1; below zero: more slowly.

    The line through the logarithms is the reduced major axis, which errors in either flatten alike. Not finite where a
    gain is none.

    Args:
      cells: of each (arm, another, base): their gains are the base's loss minus theirs.
    """

    def statistic(loss: Loss, domains: Sequence[str]) -> np.ndarray:
        def logarithm(arm: str, base: str) -> np.ndarray:
            return np.log(mean_loss(loss, base, domains) - mean_loss(loss, arm, domains))

        with np.errstate(invalid="ignore", divide="ignore"):
            y = np.stack([logarithm(arm, base) for arm, _, base in cells])
            x = np.stack([logarithm(other, base) for _, other, base in cells])
            x, y = x - x.mean(axis=0), y - y.mean(axis=0)
            return np.sign((x * y).sum(axis=0)) * np.sqrt((y**2).sum(axis=0) / (x**2).sum(axis=0)) - 1

    return statistic
