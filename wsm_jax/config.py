"""Run configuration: typed dataclasses, each field declared once with its unit and one line of help.

A file under ``configs/`` defines ``get_config() -> Config``; any field is overridden on the command line as
``--config.optimizer.peak_lr=1e-3`` (ml_collections.config_flags). Durations are strings with a unit, because a
union-typed field rejects every override: ``100steps``, ``2Mtok``, ``0.1run``.
"""

import copy
import dataclasses
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from wsm_jax.errors import UsageError


def setting(
    default: Any,
    text: str,
    *,
    later: bool = False,
    free: bool = False,
    kind: str = "",
    least: int | None = None,
    most: int = 2**63 - 1,
) -> Any:
    """A dataclass field with its default and one line of help (shown by ``wsm train --help``).

    Args:
      default: its value where nothing else is said; its type is the field's.
      text: the line of help.
      later: it came after results were published: at its default :func:`config_hash` is as it was without the field.
      free: it touches neither the parameters nor what a merge reads: it may change when a run goes on, and
        :func:`config_id` leaves it out.
      kind: what a text must be, wherever it is used or not: one of ``duration`` (at most the run), ``durations`` and
        ``curve``, see :func:`wsm_jax.checkpoints.plan.check`; or ``sources`` or ``tokenizer``, which may name local
        paths. An empty text is none of them.
      least: of a whole number, the smallest.
      most: of a whole number, the largest.
    """
    metadata = {"help": text, "later": later, "free": free, "kind": kind, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class ModelFields:
    """What the network of every family has; a family adds its own fields in a dataclass derived from this one.

    ``NUMERICS`` names the fields that change rounding, speed or memory only, so that a branch may differ in them;
    ``UNSEEN`` those that the shapes of the parameters do not tell.
    """

    NUMERICS: ClassVar[frozenset[str]] = frozenset({"compute_dtype", "loss_blocks"})
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"family"})

    family: str = setting("", "architecture, one of wsm_jax.models")
    context: int = setting(256, "tokens in one training sequence")
    vocab_size: int = setting(0, "rows of the embedding; 0 = the tokenizer's size, padded to a multiple of 128")
    compute_dtype: str = setting(
        "float32",
        "float32 or bfloat16; parameters are always float32. "
        "Products of float32 are TF32 on GPUs and bfloat16 on TPUs unless JAX_DEFAULT_MATMUL_PRECISION=highest",
    )
    loss_blocks: int = setting(
        1,
        "parts of the sequence; the logits of one part exist at a time, so more parts need less memory",
        later=True,
    )


@dataclasses.dataclass
class ModelConfig(ModelFields):
    """Shape and numerics of the default family; counts and presets are in ``wsm_jax.models.presets``."""

    NUMERICS = ModelFields.NUMERICS | {"attention", "scan_unroll", "remat"}
    UNSEEN = ModelFields.UNSEEN | {"heads"}

    family: str = setting("gpt2", "architecture, one of wsm_jax.models")
    layers: int = setting(4, "transformer blocks")
    d_model: int = setting(128, "width of the residual stream")
    heads: int = setting(4, "attention heads; d_model must be a multiple of it")
    attention: str = setting("xla", "jax.nn.dot_product_attention with xla or cudnn; blocks: query blocks, for CPUs")
    scan_unroll: int = setting(1, "layers unrolled in one iteration of the layer scan")
    remat: bool = setting(False, "recompute each block in the backward pass to save memory")


# Name of a family -> the dataclass of its fields; wsm_jax.models fills it, a family at a time.
MODEL_FIELDS: dict[str, type[ModelFields]] = {ModelConfig().family: ModelConfig}


def model_fields(values: dict[str, Any]) -> type[ModelFields]:
    """The dataclass for the fields of a model: its family's, or one made of ``values`` where nobody knows the family.

    So whoever only reads the configuration of a run need not have its network.

    Raises:
      UsageError: a value of an unknown family that is no text, number or boolean.
    """
    known = MODEL_FIELDS.get(str(values.get("family", ModelConfig().family)))
    if known:
        return known
    shared, own = {field.name for field in dataclasses.fields(ModelFields)}, []
    for name, value in values.items():
        if name in shared:
            continue
        if not isinstance(value, (str, int, float)) or not name.isidentifier():
            raise UsageError(f"config.model.{name} is {_shown(value)}; it must be a text, a number or a boolean")
        own.append((name, type(value), setting(value, "as saved")))
    return dataclasses.make_dataclass("PlainModelFields", own, bases=(ModelFields,))


@dataclasses.dataclass
class DataConfig:
    """Where documents come from and how they become tokens."""

    source: str = setting(
        "stdlib",
        "documents, comma-separated SOURCE[=WEIGHT]: stdlib | text:PATH_OR_GLOB | tfds:NAME | hf:NAME",
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


MOST_STEPS = 2**31 - 1  # a run counts its updates in an int32
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(steps?|[kMBT]?tok|run)\s*$")
_SCALE = {"tok": 1.0, "ktok": 1e3, "Mtok": 1e6, "Btok": 1e9, "Ttok": 1e12}


def parse_duration(text: str, *, tokens_per_step: int, run_steps: int | None, field: str = "duration") -> int:
    """Updates in a duration: ``100steps``, ``2Btok`` (rounded up to whole updates) or ``0.1run`` (rounded to nearest).

    Args:
      text: number and unit.
      tokens_per_step: tokens in one update.
      run_steps: updates in the whole run, or None where a share of the run makes no sense.
      field: config field named in the error.

    Raises:
      UsageError: another form, or a share of the run where ``run_steps`` is None.
    """
    match = _DURATION.match(text) if isinstance(text, str) else None
    number, unit = (float(match[1]), match[2]) if match else (math.nan, "")
    if unit == "run" and run_steps is None:
        raise UsageError(f"{field}={text!r} cannot be a share of the run; write steps or tokens")
    if unit.startswith("step"):
        steps = number
    elif unit == "run":
        steps = number * (run_steps or 0)
    else:  # the small slack keeps 1.024ktok at 1,024 tokens a step from becoming two steps through rounding
        steps = number * _SCALE.get(unit, 1.0) / tokens_per_step - 1e-9
    if not math.isfinite(steps):
        raise UsageError(f"{field}={text!r} is not a duration; write e.g. 100steps, 2Mtok or 0.1run")
    if unit.startswith("step") and steps != int(steps):
        raise UsageError(f"{field}={text!r}: steps must be a whole number")
    return round(steps) if unit == "run" else math.ceil(steps)


def parse_list(text: str) -> list[str]:
    """The items of a comma-separated list; an empty text gives an empty list."""
    return [item.strip() for item in text.split(",") if item.strip()]


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
        raise UsageError(f"{path} is {_shown(values)}, not a group of fields")
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


_TYPES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def check_values(node: Any, prefix: str = "") -> None:
    """Raises UsageError for the first field whose value is not of the type it is declared with, or out of its range.

    Args:
      node: a configuration, or one of its groups.
      prefix: what comes before the names of its fields, e.g. ``data.``.
    """
    for name, value, field in walk(node, prefix):
        kind: Any = field.type
        if dataclasses.is_dataclass(kind):  # where there is another value in a group's place, it is no group
            raise UsageError(f"{name} is {_shown(value)}, not a group of fields")
        if kind not in _TYPES:
            continue
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not fits or value != value:
            raise UsageError(f"{name} is {_shown(value)}; it must be {_TYPES[kind]}")
        if kind is int:
            _check_range(name, value, field.metadata.get("least"), field.metadata.get("most", 2**63 - 1))


def _check_range(name: str, value: int, least: int | None, most: int) -> None:
    if value < (-(2**63) if least is None else least) or value > most:
        low = "" if least is None else f"be at least {least}"
        high = "have at most 63 bits" if most == 2**63 - 1 else f"be at most {most}"
        text = low if low and value < most else " and ".join(filter(None, (low, high)))
        raise UsageError(f"{name} is {_shown(value)}; it must {text}")


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60


def _shown(value: Any) -> str:
    """``value`` in an error, at most a short line of it."""
    huge = isinstance(value, int) and value.bit_length() > 128  # Python refuses to write one of many digits
    return f"a number of {value.bit_length()} bits" if huge else _brief.repr(value)


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits that identify the configuration as it was given, for result files.

    They change with every field, also with those that touch no result, e.g. where the data are kept on this machine;
    what identifies a run is :func:`config_id`.
    """
    return _digits(_hashed(config, lambda field, value: value))


def config_id(config: Config) -> str:
    """Twelve hexadecimal digits that identify what a run computes, the same on every machine and after every resume.

    They leave out the fields that touch neither the parameters nor what a merge reads (``free`` of :func:`setting`:
    logs, evaluations, previews, resume saves, the data folder) and local paths: of ``text:PATH`` and of a tokenizer's
    file it counts that there is one. The documents and tokens themselves are identified by ``data_hash``, which is
    recorded beside it: two runs with the same ``config_id`` and ``data_hash`` compute the same.
    """
    return _digits(_hashed(config, _identifying))


def _digits(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


_LEFT_OUT = object()


def _identifying(field: Any, value: Any) -> Any:
    """What of a field's value identifies what is computed."""
    match field.metadata:
        case {"free": True}:
            return _LEFT_OUT
        case {"kind": "sources"}:
            return [_without_path(item) for item in split_commas(value)]
        case {"kind": "tokenizer"}:
            return value if value.startswith("bpe:") else "file"
    return value


def _without_path(source: str) -> str:
    """One SOURCE[=WEIGHT] without the local path in it."""
    found = re.fullmatch(r"(?P<kind>\w+):(?P<place>.*?)(?P<weight>=[-+.0-9eE]+)?", source, re.DOTALL)
    if not found:
        return source
    place = found["place"].partition("@")[0] if found["kind"] == "tfds" else found["place"]
    local = found["kind"] == "text" or place.startswith(("/", "~", "."))
    return f"{found['kind']}:{'' if local else place}{found['weight'] or ''}"


def split_commas(text: str) -> list[str]:
    """The items of a comma-separated list; a comma inside braces or brackets belongs to a glob."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [item.strip() for item in items if item.strip()]


def _hashed(node: Any, of: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """``of(field, value)`` of every field, by group, without what is marked as later and is at its default."""
    found = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            if group := _hashed(value, of):
                found[field.name] = group
        elif not (field.metadata["later"] and value == field.default):
            if (kept := of(field, value)) is not _LEFT_OUT:
                found[field.name] = kept
    return found


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, dataclass field) of every field of a configuration, in order of declaration."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from walk(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, field


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
