"""The plan of a run: every duration of its configuration resolved to steps."""

import dataclasses

import jax

from wsm_jax import config as config_lib
from wsm_jax.config import Config
from wsm_jax.core.decay import get_decay
from wsm_jax.errors import UsageError
from wsm_jax.io import memory

MOST_SAVES = 10**6  # checkpoints of one stream; a folder with more of them is of no use to anybody
MOST_TOKENS = 2**31 - 1  # of one batch, whose places are counted in int32
_TOKEN_BYTES = 12  # a batch on the host: the window read, inputs and targets, each int32


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's durations in steps (updates). A checkpoint at step s holds the parameters after s updates."""

    steps: int
    tokens_per_step: int
    switch_step: int | None
    merge_interval: int
    resume_interval: int
    branch_points: tuple[int, ...]
    evaluation_interval: int
    log_interval: int

    def merge_steps(self) -> list[int]:
        """Steps of the merge stream over the whole run."""
        return list(range(self.merge_interval, self.steps + 1, self.merge_interval))

    def resume_steps(self) -> list[int]:
        """Steps of the resume stream over the whole run."""
        return sorted(
            {*range(self.resume_interval, self.steps + 1, self.resume_interval), *self.branch_points, self.steps}
        )


def plan(config: Config) -> Plan:
    """Resolves every duration of ``config``.

    Raises:
      UsageError: a duration that is malformed, below one step, or beyond the run's end where it must lie inside.
    """

    def at_least_one(field: str, text: str) -> int:
        steps = config.duration_steps(field, text)
        if steps < 1:
            raise UsageError(f"{field}={text!r} is {steps} steps of a run of {config.steps}; it must be at least 1")
        return steps

    def within(field: str, text: str) -> int:
        if (steps := at_least_one(field, text)) > config.steps:
            raise UsageError(f"{field}={text!r} is {steps} steps, but the run ends at {config.steps}")
        return steps

    def saves(field: str, interval: int) -> int:
        if (count := config.steps // interval) > MOST_SAVES:
            raise UsageError(
                f"{field}={getattr(config.checkpoint, field.partition('.')[2])!r} makes {count:,} checkpoints in "
                f"{config.steps:,} steps; at most {MOST_SAVES:,}: write a longer one"
            )
        return interval

    config_lib.check_values(config)
    if config.model.context < 1:
        raise UsageError(f"model.context is {config.model.context}; it must be at least 1")
    for field, rows in _batches(config).items():
        if (tokens := rows * config.model.context) > MOST_TOKENS:
            raise UsageError(
                f"{field}={rows} x model.context={config.model.context} is {tokens:.10g} tokens in one batch; "
                f"at most {MOST_TOKENS:,}"
            )
    if config.evaluation.interval and not config.data.validation_fraction:
        raise UsageError("data.validation_fraction=0 leaves nothing to evaluate; raise it, or set evaluation.interval=")
    if config.batch_size % config.accumulate:
        raise UsageError(f"batch_size={config.batch_size} is not a multiple of accumulate={config.accumulate}")
    if config.steps < 1:
        raise UsageError(f"duration={config.duration!r} is {config.steps} steps; it must be at least 1")
    points = tuple(
        within("checkpoint.branch_points", text) for text in config_lib.parse_list(config.checkpoint.branch_points)
    )
    if bool(config.data.switch_source) != bool(config.data.switch_at):
        raise UsageError("data.switch_source and data.switch_at go together; give both or neither")
    return Plan(
        steps=config.steps,
        tokens_per_step=config.tokens_per_step,
        switch_step=within("data.switch_at", config.data.switch_at) if config.data.switch_at else None,
        merge_interval=saves(
            "checkpoint.merge_interval", within("checkpoint.merge_interval", config.checkpoint.merge_interval)
        ),
        resume_interval=saves(
            "checkpoint.resume_interval", at_least_one("checkpoint.resume_interval", config.checkpoint.resume_interval)
        ),
        branch_points=points,
        evaluation_interval=(
            at_least_one("evaluation.interval", config.evaluation.interval) if config.evaluation.interval else 0
        ),
        log_interval=at_least_one("log.interval", config.log.interval),
    )


def check(config: Config) -> None:
    """Raises UsageError for what :func:`plan` need not look at: fields that this run does not use, and its memory.

    A name that nobody knows, or a duration that reaches past the run, is a mistake wherever it stands. It is asked of
    a new run; one that is there was begun with what it has.
    """
    for name, text, field in config_lib.walk(config):
        match field.metadata.get("kind"):
            case "curve":
                _check_curve(name, text)
            case "duration" if text.strip():
                _check_within(config, name, text)
            case "durations":
                for one in config_lib.parse_list(text):
                    _check_within(config, name, one)
    for name, rows in _batches(config).items():
        hosts = jax.process_count() if name == "batch_size" else 1  # each host evaluates everything
        needed, free = rows * config.model.context * _TOKEN_BYTES // hosts, memory.free()
        if needed > free:
            raise UsageError(
                f"{name}={rows} takes {needed / 1e9:.1f} GB of memory for one batch, but {free / 1e9:.1f} GB are free; "
                "lower it"
            )


def _batches(config: Config) -> dict[str, int]:
    return {"batch_size": config.batch_size, "evaluation.batch_size": config.evaluation.batch_size}


def _check_curve(name: str, text: str) -> None:
    try:
        get_decay(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _check_within(config: Config, name: str, text: str) -> None:
    if (steps := config.duration_steps(name, text)) > config.steps:
        raise UsageError(f"{name}={text!r} is {steps:.10g} steps, but the run ends at {config.steps}")
