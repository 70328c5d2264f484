"""The trainer: one loop at whatever rate the schedule says, two streams of checkpoints, exact resume and branches."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wsm_jax import config as config_lib
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.run import Run
from wsm_jax.checkpoints.stream import Stream, drop_after
from wsm_jax.config import Config
from wsm_jax.data import pipeline
from wsm_jax.errors import NonFiniteError, Preempted
from wsm_jax.evaluation import evaluate
from wsm_jax.evaluation.evaluate import Evaluator
from wsm_jax.io import machine, places
from wsm_jax.models import model as model_lib
from wsm_jax.parallel import ranges, sharding
from wsm_jax.parallel.processes import all_succeed
from wsm_jax.parallel.sharding import RULES, Rules
from wsm_jax.training import forecast, tracking, train_state
from wsm_jax.training import metrics as metrics_lib
from wsm_jax.training import optimizer as optimizer_lib
from wsm_jax.training import preview as preview_lib
from wsm_jax.training.prepare import Setup, merge_items, prepare
from wsm_jax.training.profile import Profile
from wsm_jax.training.progress import Progress
from wsm_jax.training.restore import restore
from wsm_jax.training.signals import StopSignals
from wsm_jax.training.train_state import TrainState
from wsm_jax.training.train_step import jit_train_step

Batches = Iterator[dict[str, jax.Array]]
ReadAverages = Callable[[TrainState, int], dict[str, Any]]


def train(
    config: Config,
    directory: str | Path,
    *,
    branch_from: str = "",
    params_from: str = "",
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    profile: int | None = None,
    quiet: bool = False,
) -> Run:
    """Trains the run in ``directory`` to its end: from where it stopped, from a branch point, or from scratch.

    The same call again resumes from the newest full state, bit for bit on a CPU or TPU of the same kind. On GPUs XLA
    adds in no fixed order, and the run goes on up to rounding; so it does on another kind of machine. Merge checkpoints
    after that state are made anew, so that those of a run lie on one path.

    Args:
      config: the whole configuration.
      directory: the run directory, made if missing.
      branch_from: ``RUN@STEP``: start from that run's parameters, optimizer state and step, e.g. with another schedule.
      params_from: a checkpoint, e.g. a merge, whose parameters take the place of the branch's or of random ones; the
        optimizer's state, the step and the tokens are as without it.
      mesh: the devices; default: all, as ``config.mesh`` lays them out.
      rules: logical axis -> axes of the mesh over which batches and parameters are spread.
      profile: an update from which on a few are traced, into ``profile/`` of the run.
      quiet: no progress bar and no messages.

    Returns:
      the finished run.

    Raises:
      UsageError: bad input, before any work starts.
      NonFiniteError: a NaN or infinity; the checkpoints before it are kept, none after it is written.
      Preempted: SIGINT or SIGTERM came; the state is saved.
    """
    say = _silent if quiet or jax.process_index() else _say
    if profile is not None:
        places.local(directory)  # a trace is files
    setup = prepare(config, places.at(directory), branch_from, params_from, mesh, rules, say, progress=not quiet)
    plan, first = setup.plan, jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with all_succeed():
            full = train_state.items(setup.abstract)
            say(forecast.forecast(setup.directory, config, plan, full, setup.merge_items, setup.origin.start))
            if first:
                stack.enter_context(run_lib.claimed(setup.directory))
                run_lib.begin(setup.directory, setup.config, setup.facts)
        resume = stack.enter_context(
            Stream(
                run_lib.resume_stream(setup.directory),
                mergeable=False,
                keep=config.checkpoint.resume_keep,
                keep_steps=plan.branch_points,
            )
        )
        state = restore(setup, resume, say)
        with all_succeed():  # only now, for a state that cannot be loaded must cost nothing
            if first:  # what comes after the full state may be another path from there
                drop_after(run_lib.merge_stream(setup.directory), (resume.steps or [setup.origin.start])[-1])
        merge = stack.enter_context(
            Stream(run_lib.merge_stream(setup.directory), mergeable=True, keep=config.checkpoint.merge_keep)
        )
        start = int(state["step"])
        if start >= plan.steps:
            say(f"{setup.directory} is complete at step {start}")
        else:
            tracer = Profile(setup.directory / "profile", profile, start=start, steps=plan.steps)
            _run(setup, state, start, resume, merge, tracer, quiet)
    return Run(directory)


def _run(
    setup: Setup, state: TrainState, start: int, resume: Stream, merge: Stream, profile: Profile, quiet: bool
) -> None:
    """Compiles, then makes the updates from ``start`` on with all that belongs to them."""
    first = jax.process_index() == 0
    batches = _batches(setup, start)
    batch = next(batches)
    clock = time.perf_counter()
    # Compiled before the loop, so that no interval's tokens/s holds the compilation.
    options = {"accumulate": setup.config.accumulate, "rules": setup.rules}
    step = jit_train_step(setup.model, setup.optimizer, setup.mesh, setup.abstract, **options)
    step = step.lower(state, batch).compile()
    update = tracking.compile_update(setup.averages, setup.abstract["params"], setup.abstract["averages"])
    read = _reader(setup)
    compile_seconds = time.perf_counter() - clock
    validate = _validator(setup)
    settings = config_lib.to_dict(setup.config)
    writer = metrics_lib.Writer(setup.directory, setup.config.log, start_step=start, settings=settings, enabled=first)
    writer.write("start", start, compile_seconds=round(compile_seconds, 3), **machine.environment())
    progress = Progress(
        writer,
        setup.schedule,
        tokens_per_step=setup.plan.tokens_per_step,
        tokens_read=functools.partial(run_lib.tokens_read, setup.facts),
        flops_per_token=model_lib.flops_per_token(setup.model.config, setup.facts["parameters"]),
        stops=functools.partial(model_lib.stops, setup.model.config),
        start=start,
        total=setup.plan.steps,
        name=setup.directory.name,
        quiet=quiet or not first,
    )
    saver = _Saver(setup, resume, merge, writer, progress, read, validate)
    try:
        with StopSignals() as signals:
            for done in range(start + 1, setup.plan.steps + 1):
                profile.before(done, state, progress.say)
                state, metrics = step(state, batch)
                state["averages"] = update(state["averages"], state["params"], done)
                progress.add(metrics)
                if done < setup.plan.steps:
                    with progress.waiting():
                        batch = next(batches)  # read while the device computes
                stopping = signals.stopping(done) and done < setup.plan.steps
                saver.after(state, done, stopping)
                if stopping:
                    resume.wait()
                    raise Preempted(
                        f"stopped at step {done} of {setup.plan.steps}; the same command again goes on from there"
                    )
    finally:
        profile.close(progress.say)
        progress.close()
        writer.close()


class _Saver:
    """What is due after an update: records, validation, merge checkpoints, full states."""

    def __init__(
        self,
        setup: Setup,
        resume: Stream,
        merge: Stream,
        writer: metrics_lib.Writer,
        progress: Progress,
        read: ReadAverages,
        validate: Evaluator | None,
    ):
        self._setup, self._resume, self._merge = setup, resume, merge
        self._writer, self._progress = writer, progress
        self._read, self._validate = read, validate
        self._merge_steps, self._resume_steps = set(setup.plan.merge_steps()), set(setup.plan.resume_steps())

    def after(self, state: TrainState, done: int, stopping: bool) -> None:
        """Does what is due after update ``done``; ``stopping`` asks for a full state whatever the plan says.

        Raises:
          NonFiniteError: the loss, or parameters that were to be saved.
        """
        plan, config = self._setup.plan, self._setup.config
        full = done in self._resume_steps or stopping
        saving = done in self._merge_steps or full
        validating = self._validate is not None and done % plan.evaluation_interval == 0
        if saving or validating or done % plan.log_interval == 0 or done == plan.steps:
            self._progress.flush()
        if saving:
            _check_finite(state["params"], done)
        looking = validating and config.preview.averages
        found = self._read(state, done) if done in self._merge_steps or looking else {}
        if done in self._merge_steps:
            read = {"tokens": run_lib.tokens_read(self._setup.facts, done)}
            self._merge.save(done, ranges.by_ranges(merge_items(config, state["params"], found)), read)
        if validating:  # before the save: a full state promises its records too
            self._evaluate(state["params"], done, found if looking else {})
        if full:
            self._merge.wait()  # a full state on disk promises that every merge checkpoint before it is there
            self._writer.flush()
            self._resume.save(done, train_state.items(state))
        if saving or validating:
            self._progress.restart()

    def _evaluate(self, params: Any, done: int, averages: Mapping[str, Any]) -> None:
        """Records the validation loss of the parameters, of ``averages`` and of the previews."""
        setup, validate = self._setup, self._validate
        assert validate is not None
        result = validate(params).summary()
        self._writer.write("validation", done, **{**result, "tokens": run_lib.tokens_read(setup.facts, done)})
        self._progress.say(f"step {done}: validation loss {result['loss']:.4f}{_around(result)}")
        merges = preview_lib.merges(setup.previews, self._merge, done, params, start=setup.origin.start)
        for kind, trees in (("averages", averages.items()), ("preview", merges)):
            if losses := preview_lib.evaluate(trees, validate):
                self._writer.write(kind, done, **losses)


def _batches(setup: Setup, start: int) -> Batches:
    """The global batches from update ``start`` on, on the devices."""
    number, count = sharding.batch_share(setup.mesh, setup.rules)
    local = pipeline.batches(
        setup.corpus,
        context=setup.config.model.context,
        batch_size=setup.config.batch_size,
        seed=setup.config.seed,
        switch_step=setup.plan.switch_step,
        start_step=start,
        process_index=number,
        process_count=count,
        workers=setup.config.data.workers,
    )
    return (sharding.global_batch(setup.mesh, rows, setup.rules) for rows in local)


def _reader(setup: Setup) -> ReadAverages:
    """(state, step) -> averages to save, by item; under schedule_free what is evaluated there is one of them."""
    params = setup.abstract["params"]
    read = tracking.compile_read(setup.averages, params, setup.abstract["averages"])
    if setup.config.optimizer.name != optimizer_lib.SCHEDULE_FREE:
        return lambda state, step: read(state["averages"], state["params"], step)
    averaged = jax.jit(optimizer_lib.averaged_params, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, params))
    return lambda state, step: {
        **read(state["averages"], state["params"], step),
        optimizer_lib.SCHEDULE_FREE: averaged(state["opt_state"], state["params"]),
    }


def _validator(setup: Setup) -> Evaluator | None:
    if not setup.plan.evaluation_interval:
        return None
    return evaluate.make_evaluator(
        setup.model,
        setup.mesh,
        evaluate.held_out_stores(setup.corpus, "validation"),
        "validation",
        batch_size=setup.config.evaluation.batch_size,
        limit_tokens=setup.config.evaluation.tokens,
        rules=setup.rules,
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _silent(message: str) -> None:
    del message


def _around(figures: Mapping[str, Any]) -> str:
    return f" ± {figures['loss_stderr']:.4f}" if figures["documents"] > 1 else " (one document)"


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _check_finite(params: Any, step: int) -> None:
    if not _all_finite(params):
        raise NonFiniteError(step, f"step {step}: the parameters are not finite; they were not saved")
