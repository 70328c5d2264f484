"""What a pickle of PyTorch may be made of: plain containers and tensors, and the names that stand for them.

The names are those that ``torch.save`` writes; the functions here stand in for what they would import.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name, None) or ("bool" if name == "bool" else name))
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
        "uint8", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
    )
}  # fmt: skip
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
# Storages by name -> dtype; one without a type counts its elements in bytes.
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()} | {
    "torch.storage.UntypedStorage": "uint8"
}


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """Elements that lie together in a file.

    Attributes:
      key: by which the file knows it.
      dtype: a name of :data:`DTYPES`.
      nbytes: as the pickle says.
    """

    key: str
    dtype: str
    nbytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage. That its numbers are sensible is for the reader to check.

    Attributes:
      storage: where its elements are.
      dtype: a name of :data:`DTYPES`.
      offset: of its first element, in elements.
      shape: its axes.
      stride: of each axis, in elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Fields(dict):
    """The attributes of an object that has nothing else, such as argparse's Namespace."""


@dataclasses.dataclass(frozen=True)
class Name:
    """What a pickle would import."""

    text: str


def checked_key(value: Any) -> Any:
    """A key of a dictionary or an element of a set: a scalar, or a tuple of some; what is deep is slow to hash."""
    for one in value if type(value) is tuple else (value,):
        if not (one is None or type(one) in (str, int, float, bool, bytes, Name)):
            raise ValueError(f"a {kind_of(one)} as a key")
    return value


def kind_of(value: Any) -> str:
    return value.text if isinstance(value, Name) else type(value).__name__.lower()


def mapping(items: Any = ()) -> dict[Any, Any]:
    pairs: Iterable[Any] = items.items() if isinstance(items, dict) else items
    return {checked_key(key): value for key, value in pairs}


def _numbers(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or not all(type(value) is int for value in values):
        raise ValueError("a shape or stride that is not made of whole numbers")
    return tuple(values)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise ValueError("a tensor without a storage")
    return Tensor(storage, storage.dtype, offset, _numbers(shape), _numbers(stride))


def _typed_tensor(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any):
    name = dtype.text.removeprefix("torch.") if isinstance(dtype, Name) else ""
    if name not in DTYPES:
        raise ValueError("a tensor without a dtype")
    return dataclasses.replace(_tensor(storage, offset, shape, stride), dtype=name)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _device(*parts: Any) -> str:
    if not all(type(part) in (str, int) for part in parts):
        raise ValueError("a device without a name")
    return ":".join(map(str, parts))


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 keeps bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def set_of(items: Any = ()) -> set[Any]:
    return {checked_key(item) for item in items}


FIELDS = ("argparse.Namespace", "types.SimpleNamespace")
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": mapping,
    "collections.defaultdict": lambda factory=None: {},
    "collections.Counter": mapping,
    "builtins.set": set_of,
    "builtins.frozenset": set_of,
    "_codecs.encode": _encode,
    **dict.fromkeys(FIELDS, lambda: Fields()),
    "torch.Size": _numbers,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_FACTORIES = {f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "tuple")}
NAMES = {*CALLS, *_FACTORIES, *STORAGES, *(f"torch.{name}" for name in DTYPES)}
