"""Run configuration: typed dataclasses, each field declared once with its unit and one line of help.

A file under ``configs/`` defines ``get_config() -> Config``; any field is overridden on the command line as
``--config.optimizer.peak_lr=1e-3`` (ml_collections.config_flags). Durations are strings with a unit, because a
union-typed field rejects every override: ``100steps``, ``2Mtok``, ``0.1run``.
"""

import copy
import dataclasses
from typing import Any

from wsm_jax.config.durations import MOST_STEPS, parse_duration, parse_list, split_commas
from wsm_jax.config.fields import check_values, setting, shown, walk
from wsm_jax.config.identity import config_hash, config_id
from wsm_jax.config.model import MODEL_FIELDS, ModelConfig, ModelFields, left_open, model_fields
from wsm_jax.errors import UsageError

__all__ = [
    "MODEL_FIELDS", "AveragingConfig", "CheckpointConfig", "Config", "DataConfig", "EvaluationConfig", "LogConfig",
    "MeshConfig", "ModelConfig", "ModelFields", "OptimizerConfig", "PreviewConfig", "ScheduleConfig", "check_values",
    "config_hash", "config_id", "flat_fields", "free_fields", "from_dict", "left_open", "model_fields",
    "parse_duration", "parse_list", "setting", "split_commas", "to_dict", "walk", "with_fields",
]  # fmt: skip


@dataclasses.dataclass
class DataConfig:
    """Where documents come from and how they become tokens."""

    source: str = setting(
        "stdlib",
        "documents, comma-separated SOURCE[=WEIGHT]: stdlib | text:PATH_OR_GLOB | tfds:NAME | hf:NAME; "
        "or conversations: chat:PATH_OR_GLOB",
        kind="sources",
    )
    switch_source: str = setting("", "documents from data.switch_at on, same form; empty = no switch", kind="sources")
    switch_at: str = setting(
        "", "duration at which the mixture switches (the paper's T_switch), e.g. 0.8run", kind="duration"
    )
    tokenizer: str = setting(
        "bpe:4096",
        "bpe:SIZE trained on data.source | a tokenizer.json | a folder with encoder.json and vocab.bpe",
        kind="tokenizer",
    )
    store: str = setting("", "folder of prepared tokens; empty = $WSM_DATA, else ~/.cache/wsm_jax", free=True)
    validation_fraction: float = setting(0.02, "share of the documents held out for validation")
    test_fraction: float = setting(0.02, "share of the documents held out for test")
    workers: int = setting(2, "threads that read batches ahead of the loop", free=True, least=0, most=4096)


@dataclasses.dataclass
class ScheduleConfig:
    """The learning rate as a function of the step; see ``wsm_jax.core.schedules``."""

    name: str = setting(
        "constant",
        "constant (WSM) | wsd | cosine | inverse_sqrt | cyclic (SWA) | from the branch step: cooldown, rewarm",
    )
    warmup: str = setting("0.02run", "duration of the linear warm-up", kind="duration")
    curve: str = setting("linear", "decay curve of wsd and cooldown, a name of wsm_jax.DECAYS", kind="curve")
    decay: str = setting("0.2run", "duration of the decay of wsd, the last part of the run", kind="duration")
    end_fraction: float = setting(0.0, "cosine: final rate over peak rate; cyclic: lowest over peak")
    decay_end: float = setting(0.0, "wsd, cooldown: final rate over peak rate, a partial decay above 0", later=True)
    cycle: str = setting("0.01run", "cyclic: duration of a cycle", later=True, kind="duration")
    cycle_start: str = setting("0.75run", "cyclic: duration at the peak before the cycles", later=True, kind="duration")


@dataclasses.dataclass
class OptimizerConfig:
    """The update rule; defaults are the papers' AdamW."""

    name: str = setting("adamw", "adamw | lion | muon | sgd | schedule_free (a baseline: AdamW, no schedule)")
    peak_lr: float = setting(1e-3, "peak learning rate")
    b1: float = setting(0.9, "first-moment decay (momentum for sgd and muon)")
    b2: float = setting(0.95, "second-moment decay (lion: of its momentum)")
    eps: float = setting(1e-8, "added to the root of the second moment")
    weight_decay: float = setting(0.1, "decoupled decay of the matrices, multiplied by the learning rate")
    clip_norm: float = setting(1.0, "global-norm gradient clipping; 0 = none")


@dataclasses.dataclass
class CheckpointConfig:
    """What is kept: `resume` (full state) and `merge` (parameters only, float32)."""

    merge_interval: str = setting("0.02run", "duration between checkpoints of the merge stream", kind="duration")
    merge_keep: int = setting(0, "newest merge checkpoints kept; 0 = all", least=0)
    resume_interval: str = setting("0.1run", "duration between saves of the full state", free=True)
    resume_keep: int = setting(2, "newest full states kept", free=True, least=1)
    branch_points: str = setting(
        "",
        "comma-separated durations whose full state is kept for ever, e.g. 0.75run,0.9run",
        free=True,
        kind="durations",
    )
    snapshot: str = setting(
        "point", "merge stream: point (parameters) | mean (mean over each interval) | both", later=True
    )


@dataclasses.dataclass
class AveragingConfig:
    """Averages kept along the run and saved in the merge stream beside the parameters; see ``wsm_jax.averaging``."""

    names: str = setting(
        "", "comma-separated: ema | running_mean | swa | lawa | wsm | power_ema; empty = none", later=True
    )
    every: int = setting(1, "steps between updates of ema, running_mean, wsm, power_ema and interval means", later=True)
    host: bool = setting(False, "keep the accumulators in pinned host memory, not on the device", later=True, free=True)
    ema_decay: str = setting(
        "0.999/step",
        "ema: decay of a step (0.999/step) or token (0.9999999/tok), or a duration, its half-life",
        later=True,
    )
    running_mean_start: str = setting(
        "0.5run", "running_mean: duration before the first step averaged", later=True, kind="duration"
    )
    swa_start: str = setting(
        "0.75run", "swa: duration before the first sample, a multiple of swa_every", later=True, kind="duration"
    )
    swa_every: str = setting(
        "0.01run", "swa: duration between samples, a cycle where the rate is cyclic", later=True, kind="duration"
    )
    lawa_count: int = setting(6, "lawa: samples averaged, so many copies of the parameters", later=True)
    lawa_every: str = setting("0.02run", "lawa: duration between samples", later=True, kind="duration")
    wsm_curve: str = setting(
        "minus_sqrt", "wsm: decay curve emulated, a name of wsm_jax.DECAYS", later=True, kind="curve"
    )
    wsm_window: str = setting("0.1run", "wsm: duration of the emulated decay", later=True, kind="duration")
    wsm_every: str = setting(
        "",
        "wsm: duration between the ends of windows, one copy each; empty = merge_interval",
        later=True,
        kind="duration",
    )
    power_ema_widths: str = setting("0.05,0.1", "power_ema: relative widths kept, for post-hoc EMA (EDM2)", later=True)


@dataclasses.dataclass
class PreviewConfig:
    """What an anneal would give now, evaluated with every validation; see ``wsm_jax.training.preview``."""

    curves: str = setting("", "comma-separated decay curves to merge along; empty = no preview", later=True, free=True)
    windows: str = setting(
        "0.1run", "comma-separated durations of the merged windows", later=True, free=True, kind="durations"
    )
    averages: bool = setting(False, "also evaluate the averages of averaging.names", later=True, free=True)


@dataclasses.dataclass
class EvaluationConfig:
    """Validation inside the training loop."""

    interval: str = setting("0.1run", "duration between validations; empty = never", free=True, kind="duration")
    tokens: int = setting(
        65536,
        "validation tokens read each time, of each source, from the start of its split; 0 = all",
        free=True,
        least=0,
    )
    batch_size: int = setting(16, "sequences in one evaluation batch", free=True, least=1)


@dataclasses.dataclass
class LogConfig:
    """Where metrics go, beside metrics.jsonl."""

    interval: str = setting("10steps", "duration between fetches of metrics from the device", free=True)
    tensorboard: bool = setting(False, "also write TensorBoard events (needs the extra `tensorboard`)", free=True)
    wandb: str = setting("", "also log to this Weights & Biases project (needs the extra `wandb`)", free=True)


@dataclasses.dataclass
class MeshConfig:
    """How the devices are laid out; which leaf is cut over which axis is in ``wsm_jax.parallel.sharding.RULES``.

    The rows of a batch are shared out over ``data``, ``fsdp`` and ``expert``. -1 takes the devices that the other axes
    leave; ``data`` gives way to another axis that does.
    """

    data: int = setting(-1, "devices that share the batch and nothing else; -1 = the rest", later=True, free=True)
    fsdp: int = setting(
        1, "devices that share the batch, every parameter and its state; -1 = the rest", later=True, free=True
    )
    expert: int = setting(1, "devices that share the batch and the experts; -1 = the rest", later=True, free=True)
    tensor: int = setting(
        1, "devices that share heads, feed-forward features and the vocabulary; -1 = the rest", later=True, free=True
    )


@dataclasses.dataclass
class Config:
    """Everything a training run depends on."""

    duration: str = setting("1000steps", "length of the run: steps or tokens, e.g. 1000steps, 2.5Mtok")
    batch_size: int = setting(8, "sequences in one update, over all devices", least=1)
    accumulate: int = setting(1, "micro-batches summed into one update", least=1)
    seed: int = setting(0, "seeds the initialisation and the order of the data", least=0)
    model: ModelFields = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    averaging: AveragingConfig = dataclasses.field(default_factory=AveragingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    preview: PreviewConfig = dataclasses.field(default_factory=PreviewConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted in one update."""
        return self.batch_size * self.model.context

    @property
    def steps(self) -> int:
        """Updates in the whole run.

        Raises:
          UsageError: no duration, a share of the run, or more than the int32 that counts the updates holds.
        """
        steps = self.duration_steps("duration", self.duration, whole_run=None)
        if steps > MOST_STEPS:
            raise UsageError(f"duration={self.duration!r} is {steps:.10g} steps; a run has at most {MOST_STEPS:,}")
        return steps

    def duration_steps(self, field: str, text: str, whole_run: int | None = -1) -> int:
        """Updates in the duration ``text`` of the field named ``field`` (for the error).

        Raises:
          UsageError: not a number with one of the units ``steps``, ``tok`` (k, M, B, T before it) or ``run``.
        """
        steps = self.steps if whole_run == -1 else whole_run
        return parse_duration(text, tokens_per_step=self.tokens_per_step, run_steps=steps, field=field)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain dictionaries (JSON-ready)."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of :func:`to_dict`.

    Raises:
      UsageError: a field that this version does not know, or as :func:`check_values`.
    """
    config = _build(Config, values, "config")
    check_values(config)
    return config


def _build(cls: Any, values: dict[str, Any], path: str) -> Any:
    if not isinstance(values, dict):
        raise UsageError(f"{path} is {shown(values)}, not a group of fields")
    cls = model_fields(values) if cls is ModelFields else cls
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(f"{path}.{unknown[0]} is not a field of this version; known: {', '.join(sorted(fields))}")
    made = {}
    for name, value in values.items():
        kind: Any = fields[name].type
        nested = dataclasses.is_dataclass(kind)
        made[name] = _build(kind, value, f"{path}.{name}") if nested else value
    return cls(**made)


def flat_fields(config: Config) -> dict[str, tuple[Any, str]]:
    """``{"optimizer.peak_lr": (value, help), ...}`` in order of declaration."""
    return {name: (value, field.metadata["help"]) for name, value, field in walk(config)}


def free_fields() -> frozenset[str]:
    """Names of the fields that may change when a run goes on, ``free`` of :func:`setting`."""
    return frozenset(name for name, _, field in walk(Config()) if field.metadata.get("free"))


def with_fields(config: Config, **fields: Any) -> Config:
    """A deep copy with fields replaced by dotted name, ``.`` written ``__``: ``optimizer__peak_lr=1e-3``."""
    changed = copy.deepcopy(config)
    for name, value in fields.items():
        *path, last = name.split("__")
        node = changed
        for part in path:
            node = getattr(node, part)
        if last not in {field.name for field in dataclasses.fields(node)}:
            raise UsageError(f"{name.replace('__', '.')} is not a field")
        setattr(node, last, value)
    return changed
