"""The trainer: one loop at whatever rate the schedule says, two streams of checkpoints, exact resume and branches."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax import config as config_lib
from wsm_jax.checkpoints import compatibility, orbax, run_schedule
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.plan import Plan
from wsm_jax.checkpoints.run import Run
from wsm_jax.checkpoints.stream import Stream, drop_after
from wsm_jax.config import Config
from wsm_jax.core.averages import Average
from wsm_jax.core.trees import named_leaves
from wsm_jax.data import pipeline, tokens
from wsm_jax.errors import NonFiniteError, Preempted, UsageError
from wsm_jax.evaluation import evaluate
from wsm_jax.io import files, machine
from wsm_jax.models import model as model_lib
from wsm_jax.models import presets
from wsm_jax.parallel import sharding
from wsm_jax.parallel.processes import all_succeed
from wsm_jax.training import averaging, forecast, tracking, train_state
from wsm_jax.training import branch as branch_lib
from wsm_jax.training import metrics as metrics_lib
from wsm_jax.training import optimizer as optimizer_lib
from wsm_jax.training import preview as preview_lib
from wsm_jax.training.progress import Progress
from wsm_jax.training.signals import StopSignals
from wsm_jax.training.train_step import jit_train_step


def train(
    config: Config, directory: str | Path, *, branch_from: str = "", params_from: str = "", quiet: bool = False
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
      quiet: no progress bar and no messages.

    Returns:
      the finished run.

    Raises:
      UsageError: bad input, before any work starts.
      NonFiniteError: a NaN or infinity; the checkpoints before it are kept, none after it is written.
      Preempted: SIGINT or SIGTERM came; the state is saved.
    """
    directory = Path(directory)
    files.check_local(directory)
    say = _silent if quiet or jax.process_index() else _say
    plan = run_lib.resumed_plan(directory, config)
    metrics_lib.check_trackers(config.log)
    # A branch that has a state of its own goes on from it: the parent may have let go of the one it started from.
    started = bool(orbax.complete_steps(run_lib.resume_stream(directory)))
    parent, branch_step = branch_lib.parse_branch(branch_from, need_state=not started) if branch_from else (None, None)
    departing: list[str] = []
    if parent is not None and branch_step is not None:
        departing = branch_lib.check_branch(parent, branch_step, config)
        for field in departing:
            say(f"note: {field} differs from the parent's, so the branch reads other tokens")
    origin = branch_lib.parse_params(params_from, config) if params_from and not started else None
    schedule = run_schedule.from_config(config, branch_step)
    optimizer = optimizer_lib.make(config.optimizer, schedule)
    averages, host = averaging.from_config(config, schedule), config.averaging.host
    previews = preview_lib.windows(config, plan, branch_step)
    mesh = sharding.make_mesh()
    if config.batch_size % (config.accumulate * mesh.size):
        raise UsageError(
            f"batch_size={config.batch_size} is not a multiple of accumulate x devices = "
            f"{config.accumulate} x {mesh.size}"
        )

    with all_succeed():
        run_lib.check_config(directory, config)
        run_lib.check_states(directory, config)
        model_lib.check(presets.with_vocabulary(config.model, 1))  # of what is known before the tokenizer
        corpus = tokens.prepare(config.data, progress=not quiet)
    if parent is not None:
        branch_lib.check_tokenizer(parent, corpus)
        if parent.facts["data_hash"] != corpus.hash and not departing:
            say(f"note: the documents have changed since {parent.path}, so the branch reads other tokens")
    if origin is not None:
        branch_lib.check_tokenizer(origin, corpus)
    model = model_lib.build(presets.with_vocabulary(config.model, corpus.vocab_size))
    abstract = train_state.abstract(model, optimizer, mesh, averages, host_averages=host)
    if params_from and not started:
        compatibility.check_params(params_from, abstract["params"])
    shapes = tracking.read_shapes(averages, abstract["params"])
    if config.optimizer.name == optimizer_lib.SCHEDULE_FREE:
        shapes[optimizer_lib.SCHEDULE_FREE] = abstract["params"]
    merge_items = _merge_items(config, abstract["params"], shapes)
    facts = {
        "parameters": model_lib.parameter_count(abstract["params"]),
        "steps": plan.steps,
        "tokens_per_step": plan.tokens_per_step,
        "merge_interval": plan.merge_interval,
        "branch_from": f"{parent.path.absolute()}@{branch_step}" if parent else None,
        "branch_step": branch_step,
        "tokens_at_branch": run_lib.tokens_read(parent.facts, branch_step) if parent and branch_step else 0,
        "branch_points": list(plan.branch_points),
        "longest_resume_interval": run_lib.longest_resume_interval(directory, plan),
        "params_from": str(Path(params_from).absolute()) if params_from else None,
        "data_hash": corpus.hash,
        "data": corpus.manifest(),
        "config_hash": config_lib.config_hash(config),
        "config_id": config_lib.config_id(config),
        # A weight-decay-aware merge needs to know which leaves the optimizer shrinks.
        "decay_mask": {
            name: bool(decayed) for name, decayed in named_leaves(optimizer_lib.decay_mask(abstract["params"])).items()
        },
        **machine.environment(),
    }
    with contextlib.ExitStack() as stack:
        with all_succeed():
            say(forecast.forecast(directory, config, plan, train_state.items(abstract), merge_items, branch_step or 0))
            if jax.process_index() == 0:
                stack.enter_context(run_lib.claimed(directory))
                run_lib.begin(directory, config, facts)
        resume = stack.enter_context(
            Stream(
                run_lib.resume_stream(directory),
                mergeable=False,
                keep=config.checkpoint.resume_keep,
                keep_steps=plan.branch_points,
            )
        )
        if resume.steps:
            state = _load(resume, resume.steps[-1], abstract)
            say(f"resuming {directory} at step {resume.steps[-1]}")
        else:
            if parent is not None and branch_step is not None:
                with Stream(parent.resume_stream, mergeable=False, read_only=True) as stream:
                    state = _load(stream, branch_step, {**abstract, "averages": {}})
                say(f"branching from {parent.path} at step {branch_step}")
            else:
                state = train_state.initialise(model, optimizer, config.seed, mesh)
            if params_from:
                state["params"] = orbax.load_tree(params_from, abstract=abstract["params"])
                say(f"the parameters are those of {params_from}")
            state["averages"] = tracking.initialise(averages, state["params"], abstract["averages"])  # they begin here
        with all_succeed():  # only now, for a state that cannot be loaded must cost nothing
            if jax.process_index() == 0:  # what comes after the full state may be another path from there
                drop_after(run_lib.merge_stream(directory), (resume.steps or [branch_step or 0])[-1])
        merge = stack.enter_context(
            Stream(run_lib.merge_stream(directory), mergeable=True, keep=config.checkpoint.merge_keep)
        )
        start = int(state["step"])
        if start >= plan.steps:
            say(f"{directory} is complete at step {start}")
            return Run(directory)
        batches = pipeline.batches(
            corpus,
            context=config.model.context,
            batch_size=config.batch_size,
            seed=config.seed,
            switch_step=plan.switch_step,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.data.workers,
        )
        batch = sharding.global_batch(mesh, next(batches))
        clock = time.perf_counter()
        # Compiled before the loop, so that no interval's tokens/s holds the compilation.
        step = jit_train_step(model, optimizer, mesh, abstract, accumulate=config.accumulate)
        step = step.lower(state, batch).compile()
        update_averages = tracking.compile_update(averages, abstract["params"], abstract["averages"])
        read_averages = _reader(config, averages, abstract)
        compile_seconds = time.perf_counter() - clock
        validate = _validator(config, plan, model, mesh, corpus)
        writer = metrics_lib.Writer(
            directory,
            config.log,
            start_step=start,
            settings=config_lib.to_dict(config),
            enabled=jax.process_index() == 0,
        )
        writer.write("start", start, compile_seconds=round(compile_seconds, 3), **machine.environment())
        progress = Progress(
            writer,
            schedule,
            tokens_per_step=plan.tokens_per_step,
            tokens_read=functools.partial(run_lib.tokens_read, facts),
            flops_per_token=model_lib.flops_per_token(model.config, facts["parameters"]),
            start=start,
            total=plan.steps,
            name=directory.name,
            quiet=quiet or jax.process_index() != 0,
        )
        merge_steps, resume_steps = set(plan.merge_steps()), set(plan.resume_steps())
        try:
            with StopSignals() as signals:
                for done in range(start + 1, plan.steps + 1):
                    state, metrics = step(state, batch)
                    state["averages"] = update_averages(state["averages"], state["params"], done)
                    progress.add(metrics)
                    if done < plan.steps:
                        batch = sharding.global_batch(mesh, next(batches))  # read while the device computes
                    stopping = signals.stopping(done) and done < plan.steps
                    saving = done in merge_steps or done in resume_steps or stopping
                    validating = validate is not None and done % plan.evaluation_interval == 0
                    if saving or validating or done % plan.log_interval == 0 or done == plan.steps:
                        progress.flush()
                    if saving:
                        _check_finite(state["params"], done)
                    looking = validating and config.preview.averages
                    found = read_averages(state, done) if done in merge_steps or looking else {}
                    if done in merge_steps:
                        tokens_read = {"tokens": run_lib.tokens_read(facts, done)}
                        merge.save(done, _merge_items(config, state["params"], found), tokens_read)
                    if validating and validate is not None:  # before the save: a full state promises its records too
                        result = validate(state["params"]).summary()
                        writer.write("validation", done, **{**result, "tokens": run_lib.tokens_read(facts, done)})
                        progress.say(f"step {done}: validation loss {result['loss']:.4f}{_around(result)}")
                        merges = preview_lib.merges(previews, merge, done, state["params"], start=branch_step or 0)
                        for kind, trees in (("averages", found.items() if looking else ()), ("preview", merges)):
                            if losses := preview_lib.evaluate(trees, validate):
                                writer.write(kind, done, **losses)
                    if done in resume_steps or stopping:
                        merge.wait()  # a full state on disk promises that every merge checkpoint before it is there
                        resume.save(done, train_state.items(state))
                    found = {}  # the averages that were read need not stay on the device
                    if saving or validating:
                        progress.restart()
                    if stopping:
                        resume.wait()
                        raise Preempted(
                            f"stopped at step {done} of {plan.steps}; the same command again goes on from there"
                        )
        finally:
            progress.close()
            writer.close()
    return Run(directory)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _around(figures: Mapping[str, Any]) -> str:
    return f" ± {figures['loss_stderr']:.4f}" if figures["documents"] > 1 else " (one document)"


def _silent(message: str) -> None:
    del message


def _load(stream: Stream, step: int, abstract: train_state.TrainState) -> train_state.TrainState:
    """The full state at ``step``; the step itself is the checkpoint's name.

    Raises:
      UsageError: an item that the run needs is not there, or has another form.
    """
    items = train_state.items(abstract)
    if missing := set(items) - set(orbax.item_names(stream.directory / str(step))):
        raise UsageError(f"{stream.directory / str(step)} has no {', '.join(sorted(missing))}: not a state of this run")
    try:
        items = stream.load(step, items)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        place = stream.directory / str(step)
        older = max((other for other in stream.steps if other < step), default=None)
        raise UsageError(
            f"{place} cannot be loaded as a state of this run: it is damaged, or of another form, as states that an "
            f"earlier version saved with optimizer.weight_decay=0 are ({type(error).__name__}: {reason}). "
            + (f"The next older state is {older}: remove {place} to go on from there" if older else "There is no older")
        ) from error
    return {"averages": {}, **items, "step": jax.device_put(jnp.asarray(step, jnp.int32), abstract["step"].sharding)}


def _merge_items(config: Config, params: Any, averages: dict[str, Any]) -> dict[str, Any]:
    """Items of a merge checkpoint: the parameters and the averages, arrays or shapes.

    With ``checkpoint.snapshot=mean`` the interval means take the parameters' place, so that the stream takes the room
    it always took. A merge of means needs the parameters at the end of its window only where its curve does not end at
    0; they are in the resume stream, for the last full states and the branch points.
    """
    return averages if config.checkpoint.snapshot == averaging.MEAN else {orbax.PARAMS: params, **averages}


def _reader(
    config: Config, averages: Mapping[str, Average], abstract: train_state.TrainState
) -> Callable[[train_state.TrainState, int], dict[str, Any]]:
    """(state, step) -> name -> parameters to evaluate and to save: the averages, and those of ``schedule_free``."""
    read = tracking.compile_read(averages, abstract["params"], abstract["averages"])
    if config.optimizer.name != optimizer_lib.SCHEDULE_FREE:
        return lambda state, step: read(state["averages"], state["params"], step)
    averaged = jax.jit(optimizer_lib.averaged_params)
    return lambda state, step: {
        **read(state["averages"], state["params"], step),
        optimizer_lib.SCHEDULE_FREE: averaged(state["opt_state"], state["params"]),
    }


def _validator(
    config: Config, plan: Plan, model: model_lib.Model, mesh: Any, corpus: tokens.Corpus
) -> Callable[[Any], evaluate.Evaluation] | None:
    if not plan.evaluation_interval:
        return None
    return evaluate.make_evaluator(
        model,
        mesh,
        evaluate.held_out_stores(corpus, "validation"),
        "validation",
        batch_size=config.evaluation.batch_size,
        limit_tokens=config.evaluation.tokens,
    )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _check_finite(params: Any, step: int) -> None:
    if not _all_finite(params):
        raise NonFiniteError(step, f"step {step}: the parameters are not finite; they were not saved")
