"""Pickles that PyTorch wrote are read as data; 1,300 that nobody should run, run nothing."""

import contextlib
import io
import pickle
import pickletools
import random
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wsm_jax.checkpoints import torch_pickle
from wsm_jax.checkpoints.torch_values import CALLS, NAMES, Tensor
from wsm_jax.errors import UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"


def read(data: bytes) -> Any:
    return torch_pickle.load(io.BytesIO(data), "x.pt")[0]


# --- nothing runs ----------------------------------------------------------------------------------------------------

_seen: list[str] = []
_watched: list[int] = []  # the thread whose events are kept, while some are


def _hook(event: str, arguments: tuple) -> None:
    if _watched and threading.get_ident() == _watched[0]:
        _seen.append(f"{event} {arguments}")


@contextlib.contextmanager
def events() -> Iterator[list[str]]:
    """What Python's audit hooks tell of: imports, code, files, processes, attributes of classes, lookups of pickle."""
    if _hook not in _installed:
        sys.addaudithook(_hook)  # cannot be taken away, so it is told when to listen
        _installed.append(_hook)
    _seen.clear()
    _watched.append(threading.get_ident())
    try:
        yield _seen
    finally:
        _watched.clear()


_installed: list[Callable] = []


def reduced(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that imports a name and calls it."""
    body = b"".join(pickle.dumps(one, protocol=2)[2:-1] for one in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + body + b"tR."


GADGETS = {
    "system": reduced("os", "system", "echo ran > canary"),
    "posix": reduced("posix", "system", "echo ran > canary"),
    "eval": reduced("builtins", "eval", "open('canary', 'w')"),
    "exec of Python 2": reduced("__builtin__", "exec", "open('canary', 'w')"),
    "import": reduced("builtins", "__import__", "this"),
    "getattr": reduced("builtins", "getattr", "x", "__class__"),
    "open": reduced("builtins", "open", "canary", "w"),
    "partial": reduced("functools", "partial", len),
    "reduce": reduced("functools", "reduce", len, [1]),
    "popen": reduced("subprocess", "Popen", ["touch", "canary"]),
    "torch.load": reduced("torch", "load", "other.pt"),
    "torch.hub": reduced("torch.hub", "load", "a/b", "c"),
    "bytes as a file": reduced("torch.storage", "_load_from_bytes", b"x"),
    "jit": reduced("torch.jit", "load", "x"),
    "numpy.load": reduced("numpy", "load", "x.npy"),
    "numpy scalar": reduced("numpy.core.multiarray", "scalar", 1, b"x"),
    "numpy array": reduced("numpy.core.multiarray", "_reconstruct", 1, (0,), b"b"),
    "run a string": reduced("numpy.testing._private.utils", "runstring", "open('canary')", {}),
    "codecs": reduced("_codecs", "decode", b"x", "unicode_escape"),
    "attrgetter": reduced("operator", "attrgetter", "a.b"),
    "methodcaller": reduced("operator", "methodcaller", "system", "x"),
    "code": reduced("types", "CodeType", 0),
    "function": reduced("types", "FunctionType", 0),
    "marshal": reduced("marshal", "loads", b"x"),
    "pickle in a pickle": reduced("pickle", "loads", b"cos\nsystem\n."),
    "ctypes": reduced("ctypes", "CDLL", "libc.so.6"),
    "webbrowser": reduced("webbrowser", "open", "http://x"),
    "a rebuilt subclass": reduced("torch._tensor", "_rebuild_from_type_v2", 1, 2, (), {}),
    "a quantized tensor": reduced("torch._utils", "_rebuild_qtensor", 1),
    "copyreg": reduced("copyreg", "_reconstructor", object, object, None),
    "a name on the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
    "a name in two parts": b"\x80\x04\x8c\x05torch\x8c\x0c_utils.os.sh\x93)R.",
    "INST": b"(S'echo'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'echo'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n)\x81.",
    "NEWOBJ of a container": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04cargparse\nNamespace\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "BUILD of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "BUILD of a class": b"\x80\x02ccollections\nOrderedDict\n}X\x04\x00\x00\x00copyK\x01sb.",
    "BUILD of a list": b"\x80\x02]}X\x06\x00\x00\x00appendK\x01sb.",
    "APPEND to a name": b"\x80\x02ccollections\nOrderedDict\nK\x01a.",
    "SETITEM of a list": b"\x80\x02]K\x00K\x01s.",
    "a call of a string": b"\x80\x02X\x02\x00\x00\x00os)R.",
    "a call of a dtype": b"\x80\x02ctorch\nfloat32\n)R.",
    "a call of a type": b"\x80\x02c__builtin__\nlist\n)R.",
    "a module as a persistent id": b"\x80\x02(X\x06\x00\x00\x00moduleK\x01tQ.",
    "a persistent id as text": b"Pos.system\n.",
    "buffers": b"\x80\x05\x97.",
}


def programs() -> Iterator[bytes]:
    """Instructions in random order, with arguments that fit."""
    chance = random.Random(0)
    names = [*sorted(NAMES), "os.system", "builtins.eval", "a.b"]
    texts = [b"", b"a", b"os", b"storage", b"0", b"system"]
    for _ in range(500):
        parts = [b"\x80\x04"]
        for _ in range(chance.randint(1, 40)):
            one = chance.choice(pickletools.opcodes)
            argument = b""
            if one.name in ("GLOBAL", "INST"):
                argument = b"\n".join(name.encode() for name in chance.choice(names).rsplit(".", 1)) + b"\n"
            elif one.arg is not None and one.arg.n > 0:
                argument = bytes(chance.choice((0, 1, 2, 255)) for _ in range(one.arg.n))
            elif one.arg is not None and one.arg.n == -1:
                argument = chance.choice(texts) + b"\n"
            elif one.arg is not None:
                text = chance.choice(texts)
                width = {-2: 1, -3: 4, -4: 4, -5: 8}[one.arg.n]
                argument = len(text).to_bytes(width, "little") + text
            parts.append(one.code.encode("latin1") + argument)
        yield b"".join([*parts, b"."])


def mutations() -> Iterator[bytes]:
    """A real checkpoint with bytes changed, left out, repeated, and names put in the place of others."""
    chance = random.Random(1)
    with zipfile.ZipFile(GOLDEN / "nanogpt.pt") as archive:
        whole = archive.read("nanogpt/data.pkl")
    for number in range(750):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 2)):
            place = chance.randrange(len(data))
            match chance.randrange(5):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randint(1, 9)]
                case 2:
                    data[place:place] = data[chance.randrange(len(data)) :][: chance.randint(1, 30)]
                case 3:
                    data[place] = ord(chance.choice("Rbi\x81\x93\x82Qos"))
                case _:
                    old = chance.choice((b"torch\nFloatStorage", b"collections\nOrderedDict", b"argparse\nNamespace"))
                    data = data.replace(old, chance.choice((b"os\nsystem", b"builtins\neval", b"os\n_exit")))
        yield bytes(data[: chance.randrange(len(data))] if number % 10 == 0 else data)


def test_hostile_pickles_run_nothing_and_gadgets_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with events() as seen:  # a hook that hears nothing would find nothing
        pickle.loads(b"cos\ngetpid\n(tR.")
    assert any("pickle.find_class" in event for event in seen)
    read(b"VThe first text of protocol 0 imports its codec.\n.")
    outcomes = {"refused": 0, "read": 0}
    pickles = [*GADGETS.values(), *programs(), *mutations()]
    assert len(pickles) >= 1_300
    for data in pickles:
        with events() as seen:
            try:
                read(data)
                outcome = "read"
            except UsageError as error:
                outcome = "refused"
                assert str(error).startswith("x.pt: ") and "\n" not in str(error)
        assert seen == [], data
        outcomes[outcome] += 1
    assert min(outcomes.values()) >= 50, outcomes  # the mutations reach deep into it, and are not all refused at once
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", GADGETS)
def test_a_gadget_is_refused(name):
    data = GADGETS[name]
    with pytest.raises(UsageError, match="nothing of it was run"):
        read(data)


def test_the_name_that_is_refused_is_said():
    with pytest.raises(UsageError, match=r"^x\.pt: its pickle has os\.system, which is neither"):
        read(GADGETS["system"])
    with pytest.raises(UsageError, match=r"has numpy\.core\.multiarray\.scalar, which"):
        read(GADGETS["numpy scalar"])
    with pytest.raises(UsageError, match="has the instruction INST os system, which"):
        read(GADGETS["INST"])


def test_the_tables_have_no_function_of_another_module():
    assert {function.__module__ for function in CALLS.values()} == {"wsm_jax.checkpoints.torch_values"}


# --- what would take memory or time ----------------------------------------------------------------------------------


LIES = {
    "a frame of 9 EB": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "as many bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "a number of 10,000 digits": b"I" + b"9" * 10_000 + b"\n.",
    "marks alone": b"\x80\x02" + b"(" * 10 + b".",
    "a key too deep to hash": b"\x80\x02)" + b"\x85" * 1_000 + b"q\x00}h\x00K\x01s.",
    "an element too deep to hash": b"\x80\x02c__builtin__\nset\n])" + b"\x85" * 1_000 + b"a\x85R.",
    "attributes too deep to hash": b"\x80\x02cargparse\nNamespace\n]((" + b")" + b"\x85" * 1_000 + b"K\x01ta\x85R.",
    "nothing": b"",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("case", LIES)
def test_sizes_that_lie_are_refused(case):
    with pytest.raises(UsageError, match="cut short or damaged"):
        read(LIES[case])


def test_memory_is_a_table_and_not_as_long_as_the_largest_place():
    assert read(b"\x80\x02Nr\xff\xff\xff\x7f0j\xff\xff\xff\x7f.") is None


def test_a_loop_of_instructions_ends(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MOST", 1_000)
    with pytest.raises(UsageError, match="more than 1,000 instructions"):
        read(b"\x80\x02" + b"N0" * 1_000 + b"N.")


# --- what trainers write ---------------------------------------------------------------------------------------------


def test_containers_of_a_trainer_are_plain_data():
    with zipfile.ZipFile(GOLDEN / "nanogpt.pt") as archive:
        found = read(archive.read("nanogpt/data.pkl"))
    assert found["config"] == {"out_dir": "out", "betas": (0.9, 0.95), "seen": {1, 2}, "raw": b"\xff\x00"}
    assert found["args"]["lr"] == 0.1 and found["args"]["device"] == "cpu"
    assert isinstance(found["model"]["_orig_mod.0.weight"], Tensor)
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.1


@pytest.mark.parametrize("protocol", range(6))
def test_containers_of_every_protocol_are_read(protocol):
    value = {"a": [1, -2, 2**70, 1.5, None, True], "b": ("x", ("y",), ()), "é": {"c": "ü\n"}, 3: [[]]}
    assert read(pickle.dumps(value, protocol=protocol)) == value
    if protocol >= 3:
        sets = {"s": {1, 2}, "f": frozenset([3]), "b": b"\x00\xff"}
        assert read(pickle.dumps(sets, protocol=protocol)) == sets
