"""What pieces will take: runs, updates, tokens, disk, and time where a run like theirs tells its speed."""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.config import Config
from wsm_jax.data import tokens
from wsm_jax.models import model as model_lib
from wsm_jax.models import presets
from wsm_jax.parallel import sharding
from wsm_jax.sweeps.plan import Piece
from wsm_jax.sweeps.runs import PlannedRun
from wsm_jax.training import forecast, prepare, train_state


class Estimate(NamedTuple):
    """What is to be done and what it takes.

    Attributes:
      runs: that are trained, in whole or from where they stopped.
      steps: updates.
      tokens: that these updates read.
      disk: bytes of the checkpoints of all its runs, those that are there too.
      seconds: of training; None where no run tells the speed.
    """

    runs: int
    steps: int
    tokens: int
    disk: int
    seconds: float | None


DONE = Estimate(0, 0, 0, 0, 0.0)


def total(estimates: Iterable[Estimate]) -> Estimate:
    """The sum of some."""
    runs, steps, tokens, disk, seconds = 0, 0, 0, 0, 0.0
    for one in estimates:
        runs, steps, tokens, disk = runs + one.runs, steps + one.steps, tokens + one.tokens, disk + one.disk
        seconds = None if seconds is None or one.seconds is None else seconds + one.seconds
    return Estimate(runs, steps, tokens, disk, seconds)


class Estimator:
    """Estimates pieces of one sweep; what is alike is computed once.

    Args:
      runs: of the whole sweep; those that have begun tell the speed.
    """

    def __init__(self, runs: Iterable[PlannedRun]):
        self._bytes: dict[str, int] = {}
        self._rates: dict[str, list[float]] = {}
        for run in runs:
            records = run_lib.read_metrics(run.path / "metrics.jsonl")
            rates = [record["tokens_per_second"] for record in records if record["kind"] == "train"]
            self._rates.setdefault(_speed(run.config), []).extend(rates)

    def __call__(self, piece: Piece) -> Estimate:
        """What a piece takes that is not done; of runs that were cut, what is left."""
        return total(self._of_run(run) for run in piece.runs.values())

    def _of_run(self, run: PlannedRun) -> Estimate:
        start = max([run.branch_step or 0, *orbax.complete_steps(run_lib.resume_stream(run.path))])
        steps = run.plan.steps - start
        tokens, rates = steps * run.plan.tokens_per_step, self._rates[_speed(run.config)]
        seconds = tokens / statistics.median(rates) if rates else None if steps else 0.0
        return Estimate(int(steps > 0), steps, tokens, self._disk(run), seconds)

    def _disk(self, run: PlannedRun) -> int:
        config = dataclasses.asdict(run.config)
        key = json.dumps([{**config, "seed": 0}, run.branch_step])
        if key not in self._bytes:
            self._bytes[key] = _checkpoint_bytes(run)
        return self._bytes[key]


def _speed(config: Config) -> str:
    """What decides how many tokens a second a run reads."""
    return json.dumps([dataclasses.asdict(config.model), config.batch_size, config.accumulate])


def _checkpoint_bytes(run: PlannedRun) -> int:
    """Most bytes that both streams of a run will hold."""
    config = run.config
    model = model_lib.build(presets.with_vocabulary(config.model, tokens.check(config.data)))
    parts = prepare.parts_of(config, run.plan, run.branch_step)
    state = train_state.abstract(model, parts.optimizer, sharding.make_mesh(), parts.averages)
    saved = prepare.saved_shapes(config, parts.averages, state["params"])
    return sum(forecast.both_streams(config, run.plan, train_state.items(state), saved, run.branch_step or 0))
