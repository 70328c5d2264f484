"""What an anneal would give now: merges of a run's last checkpoints, evaluated while it trains."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.plan import Plan
from wsm_jax.checkpoints.stream import Stream
from wsm_jax.config import Config, parse_list
from wsm_jax.core import merge as merge_lib
from wsm_jax.core.decay import get_decay
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.evaluate import Evaluator
from wsm_jax.merging import offline
from wsm_jax.training.averaging import MEAN
from wsm_jax.training.optimizer import SCHEDULE_FREE


@dataclasses.dataclass(frozen=True)
class Preview:
    """A merge to look at: ``count`` checkpoints or means of the merge stream, every ``interval`` steps, along a curve.

    Attributes:
      curve: a name in DECAYS.
      count: number of checkpoints or interval means.
      interval: steps between them, the merge stream's own.
      means: interval means are merged, with the parameters of now as the end point; else the saved parameters.
    """

    curve: str
    count: int
    interval: int
    means: bool

    @property
    def name(self) -> str:
        """``<curve>-<count>x<interval>``."""
        return f"{self.curve}-{self.count}x{self.interval}"


def windows(config: Config, plan: Plan, branch_step: int | None = None) -> list[Preview]:
    """The previews that ``config.preview`` asks for: every curve over every window.

    They merge interval means where ``checkpoint.snapshot`` stores them, with the plain weights of the curve.

    Args:
      config: the run's configuration.
      plan: its durations in steps.
      branch_step: where the run was branched, if it was: its checkpoints come after that.

    Raises:
      UsageError: an unknown curve; a window that is no multiple of the merge interval, or longer than what is kept or
        than the run; validations that do not fall on checkpoints.
    """
    curves, found = parse_list(config.preview.curves), []
    kept = config.averaging.names or config.checkpoint.snapshot != "point" or config.optimizer.name == SCHEDULE_FREE
    if config.preview.averages and not kept:
        raise UsageError("preview.averages evaluates averages, but averaging.names asks for none")
    if (curves or config.preview.averages) and not plan.evaluation_interval:
        raise UsageError("a preview comes with every validation, but evaluation.interval is empty")
    for curve in curves:
        get_decay(curve)
        for text in parse_list(config.preview.windows):
            count, rest = divmod(config.duration_steps("preview.windows", text), plan.merge_interval)
            if rest or not count:
                raise UsageError(
                    f"preview.windows={text!r} is {count * plan.merge_interval + rest} steps, not a multiple of the "
                    f"merge stream's {plan.merge_interval}"
                )
            planned = plan.steps // plan.merge_interval - (branch_step or 0) // plan.merge_interval
            if count > planned:
                raise UsageError(
                    f"preview.windows={text!r} needs {count} checkpoints, but this run saves {planned}; "
                    "name shorter ones"
                )
            if config.checkpoint.merge_keep and count > config.checkpoint.merge_keep:
                raise UsageError(
                    f"preview.windows={text!r} needs {count} checkpoints, but checkpoint.merge_keep="
                    f"{config.checkpoint.merge_keep}"
                )
            found.append(Preview(curve, count, plan.merge_interval, config.checkpoint.snapshot != "point"))
    if found and plan.evaluation_interval % plan.merge_interval:
        raise UsageError(
            f"a preview needs validations on checkpoints, but evaluation.interval is {plan.evaluation_interval} steps "
            f"and checkpoint.merge_interval {plan.merge_interval}"
        )
    return found


def merges(
    previews: Sequence[Preview], stream: Stream, step: int, params: Any, *, start: int = 0
) -> Iterator[tuple[str, Any]]:
    """(name, merged parameters) of every preview whose window the stream holds, in memory.

    Args:
      previews: of :func:`windows`.
      stream: the merge stream; a save under way is waited for.
      step: the newest checkpoint, that of now.
      params: parameters of now, the end point of interval means.
      start: where the run was branched; a mean over an interval that began before is not whole.
    """
    if not previews:
        return
    stream.wait()
    there = set(stream.steps)
    ready = [
        w
        for w in previews
        if all(step - i * w.interval in there for i in range(w.count))
        and (not w.means or step - w.count * w.interval >= start)
    ]
    if not ready:
        return
    longest, interval, means = max(w.count for w in ready), ready[0].interval, ready[0].means
    snapshot = "mean" if means else "point"
    weights = {w.name: merge_weights(w.curve, w.count, snapshot=snapshot) for w in ready}
    padded = {w.name: np.append(np.zeros(longest - w.count), weights[w.name][: w.count]) for w in ready}
    paths = [stream.directory / str(step - i * interval) for i in reversed(range(longest))]
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    item = MEAN if means else orbax.PARAMS
    for name, tree in offline.merge_many(paths, padded, item=item, shardings=where):
        end = weights[name][-1] if means else 0.0
        yield name, merge_lib.merge([tree, params], [1.0, end]) if end else tree


def evaluate(merged: Iterable[tuple[str, Any]], validate: Evaluator) -> dict[str, float]:
    """Name -> loss in nats a token, and ``seconds``, what making and evaluating them took; empty without trees."""
    clock = time.perf_counter()
    losses = {name: validate(tree).loss for name, tree in merged}
    return {**losses, "seconds": round(time.perf_counter() - clock, 4)} if losses else {}
