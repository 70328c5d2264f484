"""Which public architecture a config.json speaks of, and which tensors of a folder are which leaves of ours."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from wsm_jax.checkpoints import torch_file
from wsm_jax.config import ModelFields
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.models import family, model
from wsm_jax.models.public import CONFIG, LAYER, Public, Settings, Shape, Tensor, each_row

COMPILED = "_orig_mod."  # torch.compile puts it before each name


def known() -> dict[str, Public]:
    """Name of an architecture -> what its family declares of it."""
    return {public.architecture: public for kind in family.families().values() for public in kind.public}


def described_in(place: Path) -> Path:
    """The file that says what the model is: config.json of a folder, or the one file of nanoGPT itself."""
    return place if place.is_file() else place / CONFIG


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder, or what a checkpoint of nanoGPT says of its model.

    Raises:
      UsageError: none there, or no JSON object.
    """
    if folder.is_file():
        return _arguments(folder)
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} is no folder of a model: it has no {CONFIG}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder / CONFIG} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{folder / CONFIG} is no JSON object, as the configuration of a model is")
    return found


def _arguments(file: Path) -> dict[str, Any]:
    """``model_args`` of a file of ``torch.save``, as nanoGPT saves them."""
    contents = torch_file.read(file).value
    found = contents.get("model_args") if isinstance(contents, dict) else None
    if not isinstance(found, dict):
        raise UsageError(
            f"{file} has no model_args, as files of nanoGPT have, and so tells no architecture; put it into a folder, "
            f"called pytorch_model.bin, with the {CONFIG} of its model"
        )
    return {"architectures": ["nanoGPT"], **found}


def recognise(values: Mapping[str, Any], place: str = CONFIG) -> tuple[Public, ModelFields]:
    """The architecture that a config.json names, and the fields of the family that computes it.

    Raises:
      UsageError: an unknown architecture, with those known; a value that is not computed here; quantized weights.
    """
    names = values.get("architectures") or []
    name = names[0] if isinstance(names, list) and names else None
    by_type = (public for public in known().values() if public.model_type == values.get("model_type"))
    public = known().get(str(name)) if name else next(by_type, None)
    if public is None:
        what = f"{name}" if name else f"model_type {values.get('model_type')!r}"
        raise UsageError(f"{place}: the architecture {what} is not known here; known: {', '.join(known())}")
    if values.get("quantization_config"):
        raise UsageError(
            f"{place} has a quantization_config; dequantize the model first (model.dequantize() and save_pretrained)"
        )
    fields = public.read(Settings(values, place))
    try:
        model.check(fields)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    return public, fields


def publishable(fields: ModelFields, what: str) -> tuple[Public, dict[str, Any]]:
    """The architecture that the model of ``fields`` is published as, and what its config.json says of it.

    Raises:
      UsageError: there is none for its options.
    """
    for public in family.of(fields).public:
        values = public.write(fields)
        if values is not None:
            return public, {
                "architectures": [public.architecture],
                "model_type": public.model_type,
                "vocab_size": fields.vocab_size,
                **values,
            }
    names = ", ".join(public.architecture for public in family.of(fields).public) or "none for its family"
    raise UsageError(f"{what} has options that no public architecture has (known: {names}); it cannot be exported")


class Entry(NamedTuple):
    """One tensor there: its name, its row of the table, and the row of the stacked leaves here, () for all of them."""

    name: str
    tensor: Tensor
    row: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Every tensor of one model, there and here.

    Attributes:
      public: its architecture.
      fields: its shape, vocabulary included.
    """

    public: Public
    fields: ModelFields

    @functools.cached_property
    def ours(self) -> dict[str, Shape]:
        """Path -> shape of our leaves."""
        init, _ = family.of(self.fields).network(self.fields)
        return {path: leaf.shape for path, leaf in named_leaves(jax.eval_shape(init, jax.random.key(0))).items()}

    @property
    def parameters(self) -> int:
        """Elements of our leaves."""
        return sum(math.prod(shape) for shape in self.ours.values())

    @functools.cached_property
    def entries(self) -> dict[str, Entry]:
        """Name there -> entry."""
        return {
            name: Entry(name, tensor, row)
            for tensor in self.public.table(self.fields, self.ours)
            for name, row in each_row(tensor, self.ours)
        }

    @functools.cached_property
    def zeros(self) -> dict[str, Shape]:
        """Name there -> shape of the biases that are zeros, as our model has none."""
        layers = max(self.ours[entry.tensor.leaves[0]][0] for entry in self.entries.values() if entry.row)
        return {
            name.replace(LAYER, str(layer)): shape
            for name, shape in self.public.filled(self.fields, self.ours).items()
            for layer in (range(layers) if LAYER in name else range(1))
        }

    def named(self, stored: Iterable[str]) -> dict[str, str]:
        """Name in the table -> name in a folder with the tensors ``stored``: aliases, and names of a bare decoder or of
        what ``torch.compile`` wraps."""
        prefix, names = self.public.prefix, {name.removeprefix(COMPILED): name for name in stored}
        bare = not any(name.startswith(prefix) for name in names)
        whole = {name for name in self.entries if not name.startswith(prefix)} | set(self.public.copies)
        found = {}
        for name, own in names.items():
            renamed = self.public.aliases.get(name, name)
            found[prefix + renamed if bare and renamed not in whole else renamed] = own
        return found

    def matched(self, shapes: Mapping[str, Shape], place: Path) -> tuple[dict[str, str], list[str]]:
        """(Name in the table -> name in the folder, names that are left out: buffers, and copies of tied embeddings).

        Args:
          shapes: of the tensors in the folder, by name.
          place: the folder, for errors.

        Raises:
          UsageError: a tensor that is unknown, missing, or of another shape than config.json says.
        """
        named = self.named(shapes)
        if twice := set(shapes) - set(named.values()):
            raise UsageError(f"{place}: {min(twice)} is in the folder under another name, too")
        left_out = [stored for name, stored in named.items() if name not in self.entries]
        for stored in left_out:
            name = stored.removeprefix(COMPILED)
            if not self.public.is_buffer(self.fields, name) and name not in self.public.copies:
                raise UsageError(f"{place}: {self.public.architecture} has no tensor {stored}, as far as is known here")
        for name, entry in self.entries.items():
            if name not in named:
                raise UsageError(f"{place} has no tensor {name}, which {self.public.architecture} needs")
            wanted, there = entry.tensor.shape(self.ours), tuple(shapes[named[name]])
            if there != wanted:
                raise UsageError(f"{place}: tensor {named[name]} is {there}; {CONFIG} makes it {wanted}")
        return {name: named[name] for name in self.entries}, sorted(left_out)
