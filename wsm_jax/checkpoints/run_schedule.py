"""The learning rate of a run, as its configuration describes it."""

from wsm_jax.config import Config
from wsm_jax.core.schedules import Schedule, constant, cooldown, cosine, cyclic, inverse_sqrt, rewarm, wsd
from wsm_jax.errors import UsageError

NAMES = ("constant", "wsd", "cosine", "inverse_sqrt", "cyclic", "cooldown", "rewarm")


ON_BRANCHES = ("cooldown", "rewarm")


def from_config(config: Config, branch_step: int | None = None) -> Schedule:
    """The schedule that ``config.schedule`` describes.

    Args:
      config: the run's configuration.
      branch_step: step of the checkpoint this run was branched from; ``cooldown`` starts there and ends with the run,
        ``rewarm`` starts there.

    Raises:
      UsageError: unknown name, or durations that do not fit.
    """
    settings, peak, total = config.schedule, config.optimizer.peak_lr, config.steps
    warmup = config.duration_steps("schedule.warmup", settings.warmup)
    if warmup >= total:
        raise UsageError(f"schedule.warmup={settings.warmup!r} ({warmup} steps) leaves nothing of {total} steps")
    match settings.name:
        case "constant":
            return constant(peak, warmup)
        case "wsd":
            decay = config.duration_steps("schedule.decay", settings.decay)
            if branch_step is not None and total - decay < branch_step:
                raise UsageError(
                    f"schedule.decay={settings.decay!r} starts at step {total - decay}, "
                    f"before the branch at {branch_step}"
                )
            return wsd(peak, settings.curve, total, decay, warmup, settings.decay_end)
        case "cosine":
            return cosine(peak, total, warmup, settings.end_fraction)
        case "inverse_sqrt":
            return inverse_sqrt(peak, warmup)
        case "cyclic":
            start = config.duration_steps("schedule.cycle_start", settings.cycle_start)
            if start < warmup:
                raise UsageError(f"schedule.cycle_start={settings.cycle_start!r} lies in the warm-up of {warmup} steps")
            cycle = config.duration_steps("schedule.cycle", settings.cycle)
            return cyclic(constant(peak, warmup), start, cycle, settings.end_fraction)
        case "cooldown" if branch_step is not None:
            steps = total - branch_step
            return cooldown(constant(peak, warmup), settings.curve, branch_step, steps, settings.decay_end)
        case "rewarm" if branch_step is not None:
            if warmup >= total - branch_step:
                raise UsageError(
                    f"schedule.warmup={settings.warmup!r} ({warmup} steps) leaves nothing of the {total - branch_step} "
                    f"steps after the branch at {branch_step}"
                )
            return rewarm(peak, branch_step, warmup)
    if settings.name in ON_BRANCHES:
        raise UsageError(f"schedule.name={settings.name} starts where a run is branched: add --branch_from=RUN@STEP")
    raise UsageError(f"unknown schedule.name {settings.name!r}; known: {', '.join(NAMES)}")


def warmup_end(config: Config, branch_step: int | None = None) -> int:
    """The step at which the warm-up of a run ends: counted from its start, of ``rewarm`` from its branch."""
    warmup = config.duration_steps("schedule.warmup", config.schedule.warmup)
    return warmup + ((branch_step or 0) if config.schedule.name == "rewarm" else 0)
