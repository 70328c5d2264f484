"""What a sweep is going to do: pieces, each one seed of one run from scratch with all that branches from it.

Everything that can be refused is refused here, before anything starts.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsm_jax import config as config_lib
from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.config import Config
from wsm_jax.data import tokens
from wsm_jax.errors import UsageError, warn
from wsm_jax.models import model as model_lib
from wsm_jax.models import presets
from wsm_jax.sweeps import windows
from wsm_jax.sweeps.declared import Declared
from wsm_jax.sweeps.experiment import Experiment
from wsm_jax.sweeps.runs import PlannedRun
from wsm_jax.sweeps.windows import Reading
from wsm_jax.training import branch as branch_lib
from wsm_jax.training import metrics as metrics_lib
from wsm_jax.training import prepare

Load = Callable[[Sequence[str]], Config]
"""``--config=FILE --config.FIELD=VALUE`` -> configuration, as the command line reads it."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """What needs no other piece's checkpoints, and is done or not done as a whole.

    Attributes:
      name: ``seed0-ROOT``.
      folder: of its records and its log.
      runs: name -> run, parents before their branches.
      readings: arm -> what it reads, of the arms of these runs.
    """

    name: str
    folder: Path
    runs: Mapping[str, PlannedRun]
    readings: Mapping[str, Reading]

    @property
    def seed(self) -> int:
        """Of all its runs."""
        return next(iter(self.runs.values())).seed


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
      declared: the experiment, its file and scale.
      settings: ``--config.FIELD=VALUE`` for all runs.
      output: folder of the runs and pieces.
      results: folder of what is made of the records.
      pieces: in the order in which they are started.
    """

    declared: Declared
    settings: tuple[str, ...]
    output: Path
    results: Path
    pieces: tuple[Piece, ...]

    @property
    def experiment(self) -> Experiment:
        """What is declared."""
        return self.declared.experiment

    @property
    def command(self) -> str:
        """What makes the same records again."""
        return " ".join(["wsm sweep", self.declared.text, *self.settings])

    @property
    def runs(self) -> list[PlannedRun]:
        """Of all pieces."""
        return [run for piece in self.pieces for run in piece.runs.values()]


def make(
    declared: Declared,
    load: Load,
    *,
    settings: Sequence[str] = (),
    output: Path | None = None,
    results: Path | None = None,
) -> Plan:
    """The plan of an experiment; nothing is written.

    Args:
      declared: the experiment.
      load: reads a configuration.
      settings: ``--config.FIELD=VALUE`` for all runs.
      output: default: ``runs/NAME/SCALE``.
      results: default: ``results`` in ``output``.

    Raises:
      UsageError: a configuration that no run could have, a branch or a window of checkpoints that will not be there, a
        run that is there with another configuration; naming the run or the arm.
    """
    experiment = declared.experiment
    output = output or Path("runs") / experiment.name / declared.scale
    order = _order(experiment)
    configs = {name: _named(f"run {name!r}", _config, experiment, name, load, settings) for name in order}
    starts = {name: _named(f"run {name!r}", _start, experiment, name, configs) for name in order}
    for name, config in configs.items():
        _keep_states(config, [starts[other] for other in order if _parent(experiment, other) == name])
    pieces = []
    for number, seed in enumerate(experiment.seeds):
        runs: dict[str, PlannedRun] = {}
        for name in order:
            runs[name] = _planned(experiment, name, seed, configs[name], starts[name], runs, output)
            _named(f"run {name!r}", _check_there if number else _check, runs[name])
        readings = {
            name: _named(f"arm {name!r}", windows.reading, runs[arm.run], arm) for name, arm in experiment.arms.items()
        }
        pieces += _pieces(experiment, order, seed, runs, readings, output)
    found = {name: reading for piece in pieces for name, reading in piece.readings.items()}
    if early := [name for name, reading in found.items() if reading.in_warmup]:
        warn(f"merges hold checkpoints of the warm-up: {', '.join(early[:5])}{', …' * (len(early) > 5)}")
    return Plan(declared, tuple(settings), output, results or output / "results", tuple(pieces))


def _named(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """``call(*arguments)``, whose UsageError tells what it is about."""
    try:
        return call(*arguments)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error


# --- one run ---------------------------------------------------------------------------------------------------------


def _config(experiment: Experiment, name: str, load: Load, settings: Sequence[str]) -> Config:
    """The configuration of a run, at seed 0."""
    own = experiment.runs[name].settings
    for where in (experiment.settings, own):
        if "seed" in where:
            raise UsageError("seed is no setting of a run; seeds= of the experiment lists them")
    for text in settings:
        field = text.split("=")[0].removeprefix("--config.")
        if field in own or field == "seed":
            raise UsageError(f"--config.{field} is set by the sweep itself")
    flags = [f"--config.{field}={value}" for field, value in experiment.settings.items()]
    flags += [*settings, *(f"--config.{field}={value}" for field, value in own.items())]
    config = load([f"--config={experiment.config}", *flags])
    for split in ("validation", "test"):
        if not getattr(config.data, f"{split}_fraction"):
            raise UsageError(f"data.{split}_fraction=0 leaves nothing to measure on; raise it, e.g. to 0.1")
    return config


def _parent(experiment: Experiment, name: str) -> str:
    return experiment.runs[name].branch_from.rpartition("@")[0]


def _start(experiment: Experiment, name: str, configs: Mapping[str, Config]) -> int | None:
    """The step at which a run is branched from its parent, if it is."""
    text = experiment.runs[name].branch_from
    if not text:
        return None
    parent = configs[_parent(experiment, name)]
    step = parent.duration_steps("branch_from", text.rpartition("@")[2])
    if not 1 <= step <= parent.steps:
        raise UsageError(f"branch_from={text!r} is step {step}, but that run goes from step 1 to {parent.steps}")
    return step


def _keep_states(config: Config, steps: Sequence[int | None]) -> None:
    """Has a run keep its full state where others are branched from it."""
    points = config_lib.parse_list(config.checkpoint.branch_points)
    kept = {config.duration_steps("checkpoint.branch_points", point) for point in points}
    new = sorted({step for step in steps if step} - kept)
    config.checkpoint.branch_points = ",".join([*points, *(f"{step}steps" for step in new)])


def _planned(
    experiment: Experiment,
    name: str,
    seed: int,
    config: Config,
    start: int | None,
    runs: Mapping[str, PlannedRun],
    output: Path,
) -> PlannedRun:
    config = copy.deepcopy(config)
    config.seed = seed
    path = output / f"seed{seed}" / folder_name(name)
    parent = runs.get(_parent(experiment, name))
    return PlannedRun(name, seed, path, config, parent, start, experiment.runs[name].params_from)


def folder_name(name: str) -> str:
    """The name of a run as that of its folder."""
    return name.replace("%", "%25").replace("/", "%2F")


def _check(run: PlannedRun) -> None:
    """Raises UsageError for what :func:`wsm_jax.training.loop.train` would refuse, as far as no text is read."""
    config = run.config
    config_lib.check_values(config)
    plan_lib.check(config)
    metrics_lib.check_trackers(config.log)
    tokens.check(config.data)
    model_lib.check(presets.with_vocabulary(config.model, 1))
    prepare.parts_of(config, run.plan, run.branch_step)
    if run.parent and run.branch_step:
        branch_lib.check_branch(run.parent, run.branch_step, config)  # pyrefly: ignore
    _check_there(run)


def _check_there(run: PlannedRun) -> None:
    """Raises UsageError where a run is there that cannot be gone on with."""
    run_lib.check_config(run.path, run.config)
    run_lib.check_states(run.path, run.config)


# --- which runs need which -------------------------------------------------------------------------------------------


def _needs(experiment: Experiment, name: str) -> list[str]:
    """The runs of which a run needs a checkpoint."""
    run = experiment.runs[name]
    origin = [experiment.arms[run.params_from].run] if run.params_from else []
    return [*filter(None, [_parent(experiment, name)]), *origin]


def _order(experiment: Experiment) -> list[str]:
    """All runs, those that others need before them.

    Raises:
      UsageError: runs that need each other; names that are no names of folders.
    """
    done: list[str] = []

    def add(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            circle = " → ".join([*waiting[waiting.index(name) :], name])
            raise UsageError(f"{experiment.name}: runs need each other's checkpoints: {circle}")
        for other in _needs(experiment, name):
            add(other, (*waiting, name))
        if name not in done:
            done.append(name)

    for name in experiment.runs:
        if not name or name.startswith(".") or len(folder_name(name).encode()) > 200:
            raise UsageError(f"{experiment.name}: run {name!r} cannot be the name of a folder")
        add(name, ())
    return done


def _pieces(
    experiment: Experiment,
    order: Sequence[str],
    seed: int,
    runs: Mapping[str, PlannedRun],
    readings: Mapping[str, Reading],
    output: Path,
) -> list[Piece]:
    """The pieces of a seed: runs that need each other's checkpoints are together."""
    together: dict[str, str] = {}  # run -> the first one of its piece
    for name in order:
        roots = sorted({together[other] for other in _needs(experiment, name)}, key=order.index) or [name]
        together |= {run: roots[0] for run, root in [*together.items(), (name, roots[0])] if root in roots}
    found = []
    for root in dict.fromkeys(together.values()):
        own = {name: runs[name] for name in order if together[name] == root}
        arms = {name: reading for name, reading in readings.items() if reading.run.name in own}
        if not arms:
            raise UsageError(f"run {root!r}: nothing of it is measured; add an arm, or leave the run out")
        name = f"seed{seed}-{folder_name(root)}"
        found.append(Piece(name, output / "pieces" / name, own, arms))
    return found
