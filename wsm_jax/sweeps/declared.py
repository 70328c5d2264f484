"""The experiment that a file declares: ``FILE[:SCALE]``, Python with ``get_sweep()``."""

import ast
import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.sweeps.axes import Sweep
from wsm_jax.sweeps.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Declared:
    """An experiment and where it stands.

    Attributes:
      experiment: what the file declares.
      file: as it was given.
      scale: as it was given, else the default of ``get_sweep``; "" where it knows none.
    """

    experiment: Experiment
    file: str
    scale: str

    @property
    def text(self) -> str:
        """``FILE[:SCALE]``, with the scale also where it is the default."""
        return f"{self.file}:{self.scale}" if self.scale else self.file


def load(text: str) -> Declared:
    """The experiment of ``FILE[:SCALE]``. The file is run; what a sweep makes of its axes is an experiment, too.

    Raises:
      UsageError: no such file, one without ``get_sweep``, a scale that it does not know, a file that fails, or one in
        which a dictionary has a name twice, of which Python would keep the last alone.
    """
    file, _, scale = (text, "", "") if Path(text).is_file() else text.rpartition(":")
    if not Path(file).is_file():
        raise UsageError(f"no file {file or text}; write FILE[:SCALE], e.g. experiments/first.py")
    _check_names(file)
    function: Any = getattr(_guarded(file, lambda: _module(Path(file))), "get_sweep", None)
    if not callable(function):
        raise UsageError(f"{file} has no get_sweep(), which returns an Experiment or a Sweep")
    known = next(iter(inspect.signature(function).parameters.values()), None)
    if scale and known is None:
        raise UsageError(f"{text}: get_sweep() of {file} takes no scale")
    if known is not None and not scale:
        if known.default is known.empty:
            raise UsageError(f"{text}: get_sweep() needs a scale; write {file}:SCALE")
        scale = str(known.default)
    made = _guarded(text, lambda: function(scale) if scale else function())
    made = _guarded(text, made.experiment) if isinstance(made, Sweep) else made
    if not isinstance(made, Experiment):
        raise UsageError(f"{text}: get_sweep() must return an Experiment or a Sweep, not a {type(made).__name__}")
    return Declared(made, file, scale)


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"wsm_sweep_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # it is a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def _guarded(text: str, call: Callable[[], Any]) -> Any:
    """What ``call`` gives; where it fails, one line that names the file, for it is anybody's Python."""
    try:
        return call()
    except UsageError as error:
        raise UsageError(f"{text}: {error}") from error
    except SystemExit as error:
        raise UsageError(f"{text}: the file ended the program (sys.exit({error.code!r}))") from error
    except Exception as error:
        raise UsageError(f"{text}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _check_names(file: str) -> None:
    """Raises UsageError for a dictionary in the file that has a key twice, as two claims of one name would be."""
    if not file.endswith(".py"):
        raise UsageError(f"{file} is no Python file (*.py)")
    tree = _guarded(file, lambda: ast.parse(Path(file).read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        keys = [key for key in node.keys if isinstance(key, ast.Constant)] if isinstance(node, ast.Dict) else []
        for number, key in enumerate(keys):
            if key.value in [before.value for before in keys[:number]]:
                raise UsageError(f"{file}:{key.lineno}: {key.value!r} is there twice in one dictionary")
