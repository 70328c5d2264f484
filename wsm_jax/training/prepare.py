"""Everything that is known of a run before its first array is made: all that can be refused is refused here."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from wsm_jax import config as config_lib
from wsm_jax.checkpoints import compatibility, orbax, run_schedule
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.plan import Plan
from wsm_jax.checkpoints.run import Run
from wsm_jax.config import Config
from wsm_jax.core.averages import Average
from wsm_jax.core.schedules import Schedule
from wsm_jax.core.trees import named_leaves
from wsm_jax.data import tokens
from wsm_jax.data.tokens import Corpus
from wsm_jax.errors import UsageError
from wsm_jax.io import machine, places
from wsm_jax.models import family, presets
from wsm_jax.models import model as model_lib
from wsm_jax.models.model import Model
from wsm_jax.parallel import chips, sharding
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel.processes import all_succeed
from wsm_jax.parallel.sharding import RULES, Rules
from wsm_jax.training import averaging, tracking, train_state
from wsm_jax.training import branch as branch_lib
from wsm_jax.training import metrics as metrics_lib
from wsm_jax.training import optimizer as optimizer_lib
from wsm_jax.training import preview as preview_lib
from wsm_jax.training.preview import Preview
from wsm_jax.training.train_state import TrainState

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run starts that has no state of its own.

    Attributes:
      parent: the run it is branched from, if it is one.
      step: the step of the branch.
      params_from: the checkpoint whose parameters take the place of the parent's or of random ones; "" for none.
      started: whether the run has a state of its own, which then comes first.
      departing: fields in which a branch departs from its parent such that it reads other tokens.
    """

    parent: Run | None
    step: int | None
    params_from: str
    started: bool
    departing: list[str]

    @property
    def start(self) -> int:
        """Updates before the run's own."""
        return self.step or 0


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that can be restored and trained.

    Attributes:
      config, directory, plan, origin: what was asked for.
      corpus, model, mesh, rules, optimizer, schedule: what trains, and where.
      averages: name -> average kept beside the parameters.
      previews: merges evaluated while it trains.
      abstract: shapes, dtypes and shardings of the train state.
      merge_items: shapes of what a merge checkpoint holds, by item.
      facts: what run.json says.
    """

    config: Config
    directory: Path
    plan: Plan
    origin: Origin
    corpus: Corpus
    model: Model
    mesh: Mesh
    rules: Rules
    optimizer: optax.GradientTransformation
    schedule: Schedule
    averages: dict[str, Average]
    previews: list[Preview]
    abstract: TrainState
    merge_items: dict[str, Any]
    facts: dict[str, Any]


def prepare(
    config: Config,
    directory: Path,
    branch_from: str,
    params_from: str,
    mesh: Mesh | None,
    rules: Rules,
    say: Say,
    progress: bool,
) -> Setup:
    """Checks all that :func:`wsm_jax.training.loop.train` was given, and reads or makes the tokens.

    Raises:
      UsageError: bad input; nothing was written but tokens.
    """
    plan = run_lib.resumed_plan(directory, config)
    metrics_lib.check_trackers(config.log, directory)
    mesh = mesh or mesh_lib.from_config(config.mesh)
    origin, params_run = _origin(config, directory, branch_from, params_from, say)
    source = run_lib.source_of(directory, origin.parent)
    config, picked = _as_made(config, source)
    schedule, optimizer, averages, previews = parts_of(config, plan, origin.step)
    at_a_time = rows(config, mesh, rules)
    sharding.batch_share(mesh, rules)
    with all_succeed():
        run_lib.check_config(directory, config)
        run_lib.check_states(directory, config)
        format = source.format if source else run_lib.FORMAT
        model_lib.check(presets.with_vocabulary(config.model, 1))  # of what is known before the tokenizer
        corpus = tokens.prepare(config.data, progress=progress)
    _check_corpus(origin, params_run, corpus, say)
    shape = presets.with_vocabulary(config.model, corpus.vocab_size, pad_given=not format)
    model = model_lib.build(dataclasses.replace(shape, **picked), at_a_time)
    if corpus.is_packed:
        model_lib.check_packed(model)
    picked = {name: getattr(model.config, name) for name in config_lib.left_open(config.model)}
    if picked:
        say(f"picked on {jax.default_backend()}: " + ", ".join(f"model.{name}={picked[name]}" for name in picked))
    where = {"host_averages": config.averaging.host, "rules": rules}
    abstract = train_state.abstract(model, optimizer, mesh, averages, **where)
    if line := sharding.check_spread(abstract["params"]):
        say(line)
    _check_room(abstract, mesh)
    if params_from and not origin.started:
        compatibility.check_params(params_from, abstract["params"])
    items = saved_shapes(config, averages, abstract["params"])
    facts = {"format": format, **_facts(config, directory, plan, origin, corpus, model, abstract["params"])}
    facts["picked"] = picked
    return Setup(
        config, directory, plan, origin, corpus, model, mesh, rules, optimizer, schedule, averages, previews, abstract,
        items, facts,
    )  # fmt: skip


def rows(config: Config, mesh: Mesh, rules: Rules = RULES) -> int:
    """Sequences that a device computes at a time.

    Raises:
      UsageError: a batch that the devices cannot share equally.
    """
    parts = sharding.batch_parts(mesh, rules)
    if config.batch_size % (config.accumulate * parts):
        raise UsageError(
            f"batch_size={config.batch_size} is not a multiple of accumulate x devices = {config.accumulate} x {parts}"
        )
    return config.batch_size // (config.accumulate * parts)


class Parts(NamedTuple):
    """What a configuration makes of a run before there is a model: what trains it, and what is kept beside it."""

    schedule: Schedule
    optimizer: optax.GradientTransformation
    averages: dict[str, Average]
    previews: list[Preview]


def parts_of(config: Config, plan: Plan, branch_step: int | None) -> Parts:
    """The parts of a run that its configuration alone decides, and the step at which it was branched, if it was.

    Raises:
      UsageError: a name that nobody knows, a value out of range, durations that do not fit.
    """
    schedule = run_schedule.from_config(config, branch_step)
    leaves = family.of(config.model).leaves(config.model)
    optimizer = optimizer_lib.make(config.optimizer, schedule, leaves)
    averages = averaging.from_config(config, schedule)
    return Parts(schedule, optimizer, averages, preview_lib.windows(config, plan, branch_step))


def _origin(config: Config, directory: Path, branch_from: str, params_from: str, say: Say) -> tuple[Origin, Run | None]:
    """Where the run starts, and the run that ``params_from`` lies in, where it lies in one and matters."""
    # A branch that has a state of its own goes on from it: the parent may have let go of the one it started from.
    started = bool(orbax.complete_steps(run_lib.resume_stream(directory)))
    parent, step = branch_lib.parse_branch(branch_from, need_state=not started) if branch_from else (None, None)
    departing: list[str] = []
    if parent is not None and step is not None:
        departing = branch_lib.check_branch(parent, step, config)
        for field in departing:
            say(f"note: {field} differs from the parent's, so the branch reads other tokens")
    params_run = branch_lib.parse_params(params_from, config) if params_from and not started else None
    return Origin(parent, step, params_from, started, departing), params_run


def _as_made(config: Config, source: Run | None) -> tuple[Config, dict[str, Any]]:
    """``config`` as ``source`` was made, where it leaves a field of the model open, and what was picked for it then.

    A kernel that is not on this machine gives way to one that computes the same.
    """
    if source is None:
        return config, {}
    open = config_lib.left_open(config.model)
    made = {name: getattr(source.config.model, name, getattr(config.model, name)) for name in open}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **made))
    picked = {name: value for name, value in source.picked.items() if name in open}
    here = family.of(config.model).portable(dataclasses.replace(config.model, **picked))
    return config, {name: getattr(here, name) for name in picked}


def _check_corpus(origin: Origin, params_run: Run | None, corpus: Corpus, say: Say) -> None:
    if origin.parent is not None:
        branch_lib.check_tokenizer(origin.parent, corpus)
        if origin.parent.facts["data_hash"] != corpus.hash and not origin.departing:
            say(f"note: the documents have changed since {origin.parent.path}, so the branch reads other tokens")
    if params_run is not None:
        branch_lib.check_tokenizer(params_run, corpus)


def _check_room(state: TrainState, mesh: Mesh) -> None:
    needed, free = sharding.device_bytes(state), chips.free_memory(mesh)
    if needed > free:
        raise UsageError(
            f"the train state takes {needed / 1e9:.3f} GB on each device, but {free / 1e9:.3f} GB are free; raise "
            "mesh.fsdp, which cuts it"
        )


def merge_items(config: Config, params: Any, averages: Mapping[str, Any]) -> dict[str, Any]:
    """Items of a merge checkpoint: the parameters and the averages, arrays or shapes.

    With ``checkpoint.snapshot=mean`` the interval means take the parameters' place, so that the stream takes the room
    it always took. A merge of means needs the parameters at the end of its window only where its curve does not end at
    0; they are in the resume stream, for the last full states and the branch points.
    """
    kept = {} if config.checkpoint.snapshot == averaging.MEAN else {orbax.PARAMS: params}
    return {**kept, **averages}


def saved_shapes(config: Config, averages: Mapping[str, Average], params: Any) -> dict[str, Any]:
    """Shapes of what a merge checkpoint holds, by item, for such averages and shapes of the parameters."""
    shapes = tracking.read_shapes(averages, params)
    if config.optimizer.name == optimizer_lib.SCHEDULE_FREE:
        shapes[optimizer_lib.SCHEDULE_FREE] = params
    return merge_items(config, params, shapes)


def _facts(
    config: Config, directory: Path, plan: Plan, origin: Origin, corpus: Corpus, model: Model, params: Any
) -> dict[str, Any]:
    parent, step = origin.parent, origin.step
    decayed = optimizer_lib.decay_mask(params, model.leaves)
    return {
        "parameters": model_lib.parameter_count(params),
        "steps": plan.steps,
        "tokens_per_step": plan.tokens_per_step,
        "merge_interval": plan.merge_interval,
        "branch_from": f"{parent.path.absolute()}@{step}" if parent else None,
        "branch_step": step,
        "tokens_at_branch": run_lib.tokens_read(parent.facts, step) if parent and step else 0,
        "branch_points": list(plan.branch_points),
        "longest_resume_interval": run_lib.longest_resume_interval(directory, plan),
        "params_from": str(places.at(origin.params_from).absolute()) if origin.params_from else None,
        "data_hash": corpus.hash,
        "data": corpus.manifest(),
        "config_hash": config_lib.config_hash(config),
        "config_id": config_lib.config_id(config),
        # A weight-decay-aware merge needs to know which leaves the optimizer shrinks.
        "decay_mask": {name: bool(value) for name, value in named_leaves(decayed).items()},
        **machine.environment(),
    }
