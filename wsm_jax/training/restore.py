"""The train state that a run goes on from: its own newest one, its parent's, or a new one."""

import jax
import jax.numpy as jnp

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.stream import Stream
from wsm_jax.errors import UsageError
from wsm_jax.training import tracking, train_state
from wsm_jax.training.prepare import Say, Setup
from wsm_jax.training.train_state import TrainState


def restore(setup: Setup, resume: Stream, say: Say) -> TrainState:
    """The state to go on from, on the devices.

    Args:
      setup: the run.
      resume: its stream of full states.
      say: told where the state comes from.

    Raises:
      UsageError: a state that cannot be loaded, with the next older one.
    """
    origin = setup.origin
    if resume.steps:
        state = load(resume, resume.steps[-1], setup.abstract)
        say(f"resuming {setup.directory} at step {resume.steps[-1]}")
        return state
    if origin.parent is not None and origin.step is not None:
        with Stream(origin.parent.resume_stream, mergeable=False, read_only=True) as stream:
            state = load(stream, origin.step, {**setup.abstract, "averages": {}})
        say(f"branching from {origin.parent.path} at step {origin.step}")
    else:
        state = train_state.initialise(setup.model, setup.optimizer, setup.config.seed, setup.mesh, rules=setup.rules)
    if origin.params_from:
        state["params"] = orbax.load_tree(origin.params_from, abstract=setup.abstract["params"])
        say(f"the parameters are those of {origin.params_from}")
    # Averages begin here.
    return {
        **state,
        "averages": tracking.initialise(setup.averages, state["params"], setup.abstract["averages"]),
    }


def load(stream: Stream, step: int, abstract: TrainState) -> TrainState:
    """The full state at ``step``; the step itself is the checkpoint's name.

    Raises:
      UsageError: an item that the run needs is not there, is damaged, or has another form.
    """
    items, place = train_state.items(abstract), stream.directory / str(step)
    if missing := set(items) - set(orbax.item_names(place)):
        raise UsageError(f"{place} has no {', '.join(sorted(missing))}: not a state of this run")
    try:
        items = stream.load(step, items)
    except UsageError:  # damaged: it says which file, and what to do
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        older = max((other for other in stream.steps if other < step), default=None)
        raise UsageError(
            f"{place} cannot be loaded as a state of this run: it is damaged, or of another form, as states that an "
            f"earlier version saved with optimizer.weight_decay=0 are ({type(error).__name__}: {reason}). "
            + (f"The next older state is {older}: remove {place} to go on from there" if older else "There is no older")
        ) from error
    return {"averages": {}, **items, "step": jax.device_put(jnp.asarray(step, jnp.int32), abstract["step"].sharding)}
