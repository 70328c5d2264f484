"""Public architectures: the names and layouts of their tensors, and their configuration, as a family's own; both ways.

A family declares one :class:`Public` for each architecture that it can compute. One table serves import and export, so
that they cannot drift apart. Here are the transforms that tables are made of, pure functions of arrays.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wsm_jax.config import ModelFields
from wsm_jax.errors import UsageError

CONFIG = "config.json"
LAYER, EXPERT = "{layer}", "{expert}"
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


# --- tensors ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A public tensor and the leaf, or the leaves, that hold its elements here.

    Attributes:
      name: there; ``{layer}`` stands for the number of a layer, which here is a row of stacked leaves, and ``{expert}``
        for that of an expert, a row within.
      leaves: paths here; several where the tensor is fused.
      turned: a matrix is [out, in] there, as in torch's Linear, and [in, out] here.
      heads: of a fused tensor whose rows are head after head, each head's rows of the first leaf, of the second, ...;
        1: all of the first leaf, then all of the second.
      rows: of each leaf in a fused tensor, where they differ.
      first: number of the layer that is the first of the stacked ones.
    """

    name: str
    leaves: tuple[str, ...]
    turned: bool = False
    heads: int = 1
    rows: tuple[int, ...] = ()
    first: int = 0

    @property
    def stacked(self) -> int:
        """How many leading axes the leaves have of which the tensor is one row: layers, and experts."""
        return (LAYER in self.name) + (EXPERT in self.name)

    def shape(self, ours: Shapes) -> Shape:
        """Its shape there, for leaves of the shapes ``ours``."""
        each = [ours[leaf][self.stacked :] for leaf in self.leaves]
        each = [shape[::-1] if self.turned else shape for shape in each]
        return sum(shape[0] for shape in each), *each[0][1:]

    def here(self, values: np.ndarray) -> list[np.ndarray]:
        """The values of each leaf (of one layer), views where possible, of those of the tensor."""
        parts = [values]
        if self.rows:
            parts = np.split(values, np.cumsum(self.rows)[:-1])
        elif len(self.leaves) > 1:
            rows = values.reshape(self.heads, len(self.leaves), -1, *values.shape[1:])
            parts = [rows[:, i].reshape(-1, *values.shape[1:]) for i in range(len(self.leaves))]
        return [self._turn(part) for part in parts]

    def there(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of :meth:`here`."""
        parts = [self._turn(part) for part in parts]
        if self.rows or len(parts) == 1:
            return np.concatenate(parts) if self.rows else parts[0]
        rest = parts[0].shape[1:]
        return np.stack([part.reshape(self.heads, -1, *rest) for part in parts], axis=1).reshape(-1, *rest)

    def _turn(self, values: np.ndarray) -> np.ndarray:
        return values.T if self.turned else values


def plain(name: str, path: str) -> list[Tensor]:
    """A tensor that is the same here, e.g. an embedding."""
    return [Tensor(name, (path,))]


def norm(name: str, path: str) -> list[Tensor]:
    """``NAME.weight`` and ``.bias`` of a norm."""
    return [Tensor(f"{name}.weight", (f"{path}/scale",)), Tensor(f"{name}.bias", (f"{path}/bias",))]


def linear(name: str, *paths: str, turned: bool = True, heads: int = 1) -> list[Tensor]:
    """``NAME.weight`` and ``.bias`` of a matrix, or of several that are fused there."""
    kernels, biases = (tuple(f"{path}/{last}" for path in paths) for last in ("kernel", "bias"))
    return [Tensor(f"{name}.weight", kernels, turned, heads), Tensor(f"{name}.bias", biases, False, heads)]


# --- architectures ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Public:
    """An architecture as others publish it.

    Attributes:
      architecture: as ``architectures`` of a config.json has it.
      model_type: likewise.
      prefix: of most of its tensors; files of the bare decoder lack it.
      tensors: fields of the family -> its table, with the biases that only some options have.
      read: (:class:`Settings` of a config.json) -> fields of the family; raises UsageError for what it cannot compute.
      write: fields -> what config.json says of them, without what all architectures have; None where it cannot say it.
      buffers: regular expression for the tensors that are no parameters, which are left out.
      aliases: other names that some files have -> the name in the table.
      copies: name of a second copy that some files hold -> the tensor that it must equal; of tied embeddings.
      fills: whether biases that the family does without are zeros there.
      bounded: whether the parameters bound the context, as learned positions do.
      more_layers: whether files may have layers after the last, which predict further tokens and are left out.
    """

    architecture: str
    model_type: str
    prefix: str
    tensors: Callable[[Any], Sequence[Tensor]]
    read: Callable[["Settings"], ModelFields]
    write: Callable[[Any], dict[str, Any] | None]
    buffers: str
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fills: bool = False
    bounded: bool = False
    more_layers: bool = False

    def table(self, config: ModelFields, ours: Shapes) -> list[Tensor]:
        """The tensors whose leaves the model has, ``ours``."""
        return [tensor for tensor in self.tensors(config) if all(leaf in ours for leaf in tensor.leaves)]

    def filled(self, config: ModelFields, ours: Shapes) -> dict[str, Shape]:
        """Name -> shape of the biases that are zeros there, as the model has none; a name may hold ``{layer}``."""
        found = {}
        for tensor in self.tensors(config) if self.fills else ():
            path, _, last = tensor.leaves[0].rpartition("/")
            if tensor.leaves[0] not in ours and last == "bias":
                weight = next(ours[f"{path}/{kind}"] for kind in ("kernel", "scale") if f"{path}/{kind}" in ours)
                found[tensor.name] = weight[-1:]
        return found

    def is_buffer(self, config: Any, name: str) -> bool:
        """Whether a tensor of that name is left out; ``config``: fields of the family."""
        layer = re.match(r"(?:model\.)?layers\.(\d+)\.", name) if self.more_layers else None
        return re.fullmatch(self.buffers, name) is not None or bool(layer and int(layer[1]) >= config.layers)


def each_row(tensor: Tensor, ours: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name there, row of the stacked leaves here) of every layer and expert; one with () where it is not stacked."""
    for row in np.ndindex(*ours[tensor.leaves[0]][: tensor.stacked]):
        name = tensor.name
        for what, number in zip((LAYER, EXPERT), row, strict=False):
            name = name.replace(what, str(number + tensor.first * (what == LAYER)))
        yield name, row


class Settings:
    """A config.json being read: what is missing or cannot be computed is a UsageError that names the field.

    Args:
      values: of the file.
      place: the file, for errors.
    """

    def __init__(self, values: Mapping[str, Any], place: str = CONFIG):
        self.values, self.place = values, place

    def need(self, name: str, *others: str) -> Any:
        """The value of the first of some names that is there."""
        for one in (name, *others):
            if self.values.get(one) is not None:
                return self.values[one]
        raise UsageError(f"{self.place} has no {name}, which says what the model is")

    def get(self, name: str, default: Any) -> Any:
        """The value, or ``default``, as transformers has it, where it is missing or null."""
        found = self.values.get(name)
        return default if found is None else found

    def only(self, name: str, default: Any, *allowed: Any) -> Any:
        """The value, which must be the default or among ``allowed``."""
        found, known = self.get(name, default), (default, *allowed)
        if found not in known:
            choices = " or ".join(map(repr, dict.fromkeys(known)))
            raise UsageError(f"{self.place}: {name} is {found!r}, which is not computed here; it must be {choices}")
        return found

    def number(self, name: str, *others: str, kind: type = int) -> Any:
        """The value, a number of that kind."""
        found = self.need(name, *others)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or kind(found) != found:
            raise UsageError(f"{self.place}: {name} is {found!r}, not a number")
        return kind(found)

    def rope(
        self, base: str = "rope_theta", share: str = "", default: float = 1.0, theta: float = 1e4
    ) -> dict[str, Any]:
        """What rotary positions are made of, as the older and the newer files of transformers say it.

        Args:
          base: the older name of the base.
          share: the older name of the share of a head that is rotated.
          default: that share where nothing says it.
          theta: the base where nothing says it.

        Returns:
          ``rope_theta``, ``partial_rotary_factor``, ``rope_type`` and what that has besides.

        Raises:
          UsageError: positions that differ by layer.
        """
        old, new = self.get("rope_scaling", {}), self.get("rope_parameters", {})
        found = {**old, **new}
        if any(isinstance(value, dict) for value in found.values()):
            raise UsageError(f"{self.place}: rope_parameters differ by layer, which is not computed here")
        found.setdefault("rope_theta", self.get(base, theta))
        found.setdefault("partial_rotary_factor", self.get(share, default) if share else default)
        found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
        return found

    def refuse(self, name: str, value: Any, known: str) -> UsageError:
        """The error for a value that nobody here computes."""
        return UsageError(f"{self.place}: {name} is {value!r}, which is not computed here; known: {known}")

    def full_attention(self) -> None:
        """Raises UsageError for attention that does not see all tokens before."""
        window = self.get("sliding_window", None) if self.get("use_sliding_window", True) else None
        if window is not None:
            raise UsageError(
                f"{self.place}: sliding_window is {window!r}; attention within a window is not computed here"
            )
        kinds = set(self.get("layer_types", [])) - {"full_attention"}
        if kinds:
            raise UsageError(f"{self.place}: layer_types has {sorted(kinds)[0]!r}, which is not computed here")
