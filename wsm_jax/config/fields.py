"""A field of a configuration: how it is declared, walked over, and checked against its declaration."""

import dataclasses
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

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
    before: Mapping[Any, Any] | None = None,
    open: bool = False,
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
      before: value -> what earlier versions had in its place, which hashes hold still.
      open: its default leaves it to what suits the machine and the shape; what that was is in run.json, see
        :func:`wsm_jax.config.left_open`.
    """
    metadata = {"help": text, "later": later, "free": free, "kind": kind, "least": least, "most": most}
    metadata |= {"before": before or {}, "open": open}
    return dataclasses.field(default=default, metadata=metadata)


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, dataclass field) of every field of a configuration, in order of declaration."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from walk(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, field


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
            raise UsageError(f"{name} is {shown(value)}, not a group of fields")
        if kind not in _TYPES:
            continue
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not fits or value != value:
            raise UsageError(f"{name} is {shown(value)}; it must be {_TYPES[kind]}")
        if kind is int:
            _check_range(name, value, field.metadata.get("least"), field.metadata.get("most", 2**63 - 1))  # pyrefly: ignore


def _check_range(name: str, value: int, least: int | None, most: int) -> None:
    if value < (-(2**63) if least is None else least) or value > most:
        low = "" if least is None else f"be at least {least}"
        high = "have at most 63 bits" if most == 2**63 - 1 else f"be at most {most}"
        text = low if low and value < most else " and ".join(filter(None, (low, high)))
        raise UsageError(f"{name} is {shown(value)}; it must {text}")


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60


def shown(value: Any) -> str:
    """``value`` in an error, at most a short line of it."""
    huge = isinstance(value, int) and value.bit_length() > 128  # Python refuses to write one of many digits
    return f"a number of {value.bit_length()} bits" if huge else _brief.repr(value)
