"""The plan of a run: every duration of its configuration resolved to steps."""

import dataclasses

from wsm_jax import config as config_lib
from wsm_jax.config import Config
from wsm_jax.errors import UsageError


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

    flat = config_lib.flat_fields(config)
    for field in ("batch_size", "accumulate", "model.context", "evaluation.batch_size"):
        if (value := flat[field][0]) < 1:
            raise UsageError(f"{field} is {value}; it must be at least 1")
    for field in ("seed", "data.workers", "evaluation.tokens"):
        if not 0 <= (value := flat[field][0]) < 2**63:
            raise UsageError(f"{field} is {value}; it must be at least 0 and have at most 63 bits")
    if config.evaluation.interval and not config.data.validation_fraction:
        raise UsageError("data.validation_fraction=0 leaves nothing to evaluate; raise it, or set evaluation.interval=")
    if config.batch_size % config.accumulate:
        raise UsageError(f"batch_size={config.batch_size} is not a multiple of accumulate={config.accumulate}")
    if config.steps < 1:
        raise UsageError(f"duration={config.duration!r} is {config.steps} steps; it must be at least 1")
    points = tuple(
        within("checkpoint.branch_points", text) for text in config_lib.parse_list(config.checkpoint.branch_points)
    )
    if config.checkpoint.resume_keep < 1 or config.checkpoint.merge_keep < 0:
        raise UsageError("checkpoint.resume_keep must be at least 1 and checkpoint.merge_keep at least 0 (0 = all)")
    if bool(config.data.switch_source) != bool(config.data.switch_at):
        raise UsageError("data.switch_source and data.switch_at go together; give both or neither")
    return Plan(
        steps=config.steps,
        tokens_per_step=config.tokens_per_step,
        switch_step=within("data.switch_at", config.data.switch_at) if config.data.switch_at else None,
        merge_interval=within("checkpoint.merge_interval", config.checkpoint.merge_interval),
        resume_interval=at_least_one("checkpoint.resume_interval", config.checkpoint.resume_interval),
        branch_points=points,
        evaluation_interval=(
            at_least_one("evaluation.interval", config.evaluation.interval) if config.evaluation.interval else 0
        ),
        log_interval=at_least_one("log.interval", config.log.interval),
    )
