"""Branching: a run that starts from another run's full state, e.g. to decay the rate for real (WSD)."""

from wsm_jax import config as config_lib
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.checkpoints.compatibility import check_unseen, origin_of
from wsm_jax.checkpoints.run import Run
from wsm_jax.config import Config
from wsm_jax.data.tokens import Corpus
from wsm_jax.errors import UsageError
from wsm_jax.training import optimizer


def parse_branch(text: str, *, need_state: bool = True) -> tuple[Run, int]:
    """The run and step of ``RUN@STEP``.

    Args:
      text: what to parse.
      need_state: whether the full state must be there.

    Raises:
      UsageError: another form, no such run, or no full state at that step, naming the steps there are.
    """
    path, at, step = text.rpartition("@")
    if not path.strip() or not at or not orbax.is_step(step):
        raise UsageError(f"--branch_from={text!r} is not of the form RUN@STEP, e.g. runs/tiny@750")
    run = Run(path)
    steps = orbax.complete_steps(run.resume_stream)
    if need_state and int(step) not in steps:
        raise UsageError(
            f"{path} has no full state at step {step}; it has {steps or 'none'} "
            "(checkpoint.branch_points names steps whose state is kept for ever)"
        )
    return run, int(step)


# What the parameters and optimizer state of a branch must share with its parent.
_SAME = ("model.", "optimizer.name")
# What must be equal for a branch to read the tokens its parent would have read.
_SAME_TOKENS = ("batch_size", "seed", "data.source", "data.switch_", "data.validation_fraction", "data.test_fraction")
_SWITCH = "data.switch_at"


def check_branch(parent: Run, step: int, config: Config) -> list[str]:
    """Fields in which a branch departs from its parent such that it reads other tokens.

    Raises:
      UsageError: the parent's state does not fit the configuration, or the run ends before the branch.
    """
    if step >= config.steps:
        raise UsageError(f"the branch starts at step {step}, but duration={config.duration!r} ends at {config.steps}")
    old = {name: value for name, (value, _) in config_lib.flat_fields(parent.config).items()}
    new = {name: value for name, (value, _) in config_lib.flat_fields(config).items()}
    different = [name for name, value in new.items() if old.get(name) != value]
    for name in different:
        if name.startswith(_SAME) and name.removeprefix("model.") not in config.model.NUMERICS:
            raise UsageError(f"{name} differs from that of {parent.path} ({old[name]!r}): its state does not fit")
    if optimizer.SCHEDULE_FREE == config.optimizer.name and "optimizer.b1" in different:
        raise UsageError(
            f"optimizer.b1 differs from that of {parent.path} ({old['optimizer.b1']!r}), which the state of "
            f"{optimizer.SCHEDULE_FREE} is made with"
        )
    warmup = config.duration_steps("schedule.warmup", config.schedule.warmup)
    before = parent.config.duration_steps("schedule.warmup", parent.config.schedule.warmup)
    if config.schedule.name != "rewarm" and step < warmup != before:
        raise UsageError(
            f"schedule.warmup={config.schedule.warmup!r} is {warmup} steps of this run, so after the branch at {step} "
            f"the rate would warm up again; write schedule.warmup={before}steps as the parent, or schedule.name=rewarm"
        )
    departing = [name for name in different if name.startswith(_SAME_TOKENS) and name != _SWITCH]
    # A duration such as 0.8run is another step in a run of another length.
    return departing + [_SWITCH] * (plan_lib.plan(parent.config).switch_step != plan_lib.plan(config).switch_step)


def parse_params(path: str, config: Config) -> Run | None:
    """The run that the checkpoint at ``path`` lies in, as its own checkpoints and merges do; None outside any run.

    Raises:
      UsageError: no checkpoint there, one of a run with other attention heads, or the optimizer keeps copies of the
        parameters that would stay the old ones.
    """
    if config.optimizer.name == optimizer.SCHEDULE_FREE:
        raise UsageError(f"--params_from does not go with optimizer.name={optimizer.SCHEDULE_FREE}")
    names = orbax.item_names(path)
    if len(names) > 1 and orbax.PARAMS not in names:
        raise UsageError(f"{path} has the items {', '.join(names)}, but no {orbax.PARAMS} to start from")
    orbax.choose_item(path)
    origin = origin_of(path)
    if origin is not None:
        check_unseen(path, origin, config)
    return origin


def check_tokenizer(parent: Run, corpus: Corpus) -> None:
    """Raises UsageError where ``corpus`` has other tokens than the parent's parameters know.

    ``bpe:SIZE`` is trained on the documents, so other documents give another vocabulary under the same name.
    """
    if parent.facts["data"]["tokenizer_hash"] != corpus.tokenizer.hash:
        place = (parent.tokenizer or parent.path) / "tokenizer.json"
        raise UsageError(
            f"the tokenizer differs from that of {parent.path}: its embeddings do not fit; use data.tokenizer={place}"
        )
