"""What a pickle that PyTorch wrote says, as plain data.

A pickle is a program, and `pickle` would run it: import what it names, call what it likes. Here `pickletools` takes it
apart, and the few instructions that build containers are carried out. A name stands for itself and is looked up in the
tables below, never in a module; no instruction calls anything but the small functions of this file. What the tables do
not have is refused by its name.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from wsm_jax.checkpoints.torch_values import (
    CALLS,
    DTYPES,
    FIELDS,
    NAMES,
    STORAGES,
    Fields,
    Name,
    Storage,
    checked_key,
    kind_of,
    mapping,
    set_of,
)
from wsm_jax.errors import UsageError

MOST = 10_000_000  # instructions; a tensor takes some thirty


def load(stream: BinaryIO, what: str) -> tuple[Any, dict[str, Storage]]:
    """The value of the next pickle of ``stream``, whose end it is read to.

    Args:
      stream: seekable.
      what: the file, for errors.

    Returns:
      the value, of dictionaries, lists, tuples, sets, numbers, strings, bytes, :class:`Tensor` and :class:`Fields`; and
      key -> storage.

    Raises:
      UsageError: an instruction or a name that is not for data, a pickle that is cut short or damaged.
    """
    machine = _Machine(what)
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if count == MOST:
                raise ValueError(f"more than {MOST:,} instructions")
            step = _STEPS.get(instruction.name)
            if step is None:
                machine.refuse(f"the instruction {instruction.name} {'' if argument is None else argument}".strip())
            step(machine, argument)
        return machine.pop(), machine.storages
    except UsageError:
        raise
    # What instructions in no sensible order lead to; nothing here runs what they name.
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, RecursionError) as error:
        raise UsageError(f"{what}: its pickle is cut short or damaged ({_shown(str(error))})") from error


class _Machine:
    """The stack and the memory of a pickle while it is read."""

    def __init__(self, what: str):
        self._what = what
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark
        self.memory: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def refuse(self, what: str) -> NoReturn:
        raise UsageError(
            f"{self._what}: its pickle has {_shown(what)}, which is neither a tensor nor a plain container; nothing of "
            "it was run. If you trust the file, save the tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW)"
        )

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self, _: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self._below.pop()
        return found

    def put(self, place: int) -> None:
        self.memory[place] = self.stack[-1]

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            self.refuse(f"additions to a {kind_of(self.stack[-1])}")
        return self.stack[-1]

    def set_items(self, flat: list[Any]) -> None:
        self.top(dict).update((checked_key(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True))

    def name(self, text: str) -> None:
        text = "builtins." + text.removeprefix("__builtin__.") if text.startswith("__builtin__.") else text
        if text not in NAMES:
            self.refuse(text)
        self.stack.append(Name(text))

    def name_of_stack(self, _: Any) -> None:
        attribute, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise ValueError("a name that is no text")
        self.name(f"{module}.{attribute}")

    def call(self, _: Any) -> None:
        arguments, what = self.pop(), self.pop()
        function = CALLS.get(what.text) if isinstance(what, Name) else None
        if function is None:
            self.refuse(f"a call of {what.text if isinstance(what, Name) else f'a {kind_of(what)}'}")
        if type(arguments) is not tuple:
            raise ValueError("arguments that are no tuple")
        self.stack.append(function(*arguments))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Fields) and type(state) is dict:
            target.update((checked_key(key), value) for key, value in state.items())
        elif type(target) is not dict:  # attributes of an OrderedDict say nothing of its tensors
            self.refuse(f"a state of a {kind_of(target)}")

    def persistent(self, _: Any) -> None:
        found = self.pop()
        known = type(found) is tuple and len(found) in (5, 6) and found[0] == "storage"
        kind = found[1].text if known and isinstance(found[1], Name) else ""
        if not known or kind not in STORAGES or any(found[5:]):
            self.refuse(f"an object outside it that is no storage ({kind or kind_of(found)})")
        _, _, key, _, count, *_ = found
        if type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a storage without a name or a size")
        storage = Storage(key, STORAGES[kind], count * DTYPES[STORAGES[kind]].itemsize)
        self.stack.append(self.storages.setdefault(key, storage))
        if self.stack[-1].nbytes != storage.nbytes or self.stack[-1].dtype != storage.dtype:
            raise ValueError(f"storage {key} has two sizes or dtypes")


def _shown(text: str) -> str:
    """A text of the file, fit for one line."""
    text = text if len(text) <= 120 else f"{text[:120]}..."
    return text if text.isprintable() else repr(text)


# --- the instructions that build data --------------------------------------------------------------------------------


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _ignore(machine: _Machine, argument: Any) -> None:
    pass


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        parts = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(parts)))

    return step


def _new_object(machine: _Machine, _: Any) -> None:
    arguments, what = machine.pop(), machine.pop()
    if not (isinstance(what, Name) and what.text in FIELDS and arguments == ()):
        machine.refuse(f"a new object of {kind_of(what)}")
    machine.stack.append(Fields())


def _append(machine: _Machine, values: list[Any]) -> None:
    machine.top(list).extend(values)


def _add(machine: _Machine, values: list[Any]) -> None:
    machine.top(set).update(set_of(values))


def _discard(machine: _Machine, _: Any) -> None:
    machine.since_mark()


def _pop(machine: _Machine, _: Any) -> None:
    machine.pop() if machine.stack else machine.since_mark()


_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "NONE",
)  # fmt: skip
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_VALUES, _push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _ignore),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, place: m.put(place)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, place: m.stack.append(m.memory[place])),
    "MEMOIZE": lambda m, _: m.put(len(m.memory)),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "MARK": _Machine.mark,
    "POP": _pop,
    "POP_MARK": _discard,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: _push(m, tuple(m.since_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": lambda m, _: _push(m, m.since_mark()),
    "DICT": lambda m, _: _push(m, mapping(zip(*[iter(m.since_mark())] * 2, strict=True))),
    "FROZENSET": lambda m, _: _push(m, set_of(m.since_mark())),
    "APPEND": lambda m, _: _append(m, [m.pop()]),
    "APPENDS": lambda m, _: _append(m, m.since_mark()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "ADDITEMS": lambda m, _: _add(m, m.since_mark()),
    "GLOBAL": lambda m, pair: m.name(pair.replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
