"""``--config=FILE --config.field=value``, read by ml_collections.config_flags into a :class:`Config`."""

import contextlib
import dataclasses
import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsm_jax.config import MODEL_FIELDS, Config, ModelFields, check_values, flat_fields
from wsm_jax.errors import UsageError, nearest


def load(arguments: Sequence[str]) -> Config:
    """The configuration that ``--config=...`` and ``--config.*=...`` arguments describe.

    The fields of the model are those of its family, so they are looked at once that is known.

    Raises:
      UsageError: no ``--config``, a file that is missing or does not make a Config, an unknown field, a bad value.
    """
    from ml_collections import config_flags

    check_fields([argument for argument in arguments if not _name(argument).startswith(_MODEL)])
    files = [argument for argument in arguments if _name(argument) == "config"]
    if not files:
        raise UsageError("--config=FILE is missing; e.g. --config=configs/tiny.py")
    config = _read(config_flags.DEFINE_config_file, None, files)
    if not isinstance(config, Config):
        raise UsageError(f"--config: get_config() must return a wsm_jax.Config, not {type(config).__name__}")
    check_values(config)
    _choose_family(config, arguments)
    return changed(config, [argument for argument in arguments if _name(argument) != "config"])


def changed(config: Config, arguments: Sequence[str]) -> Config:
    """``config`` with the fields that ``--config.FIELD=VALUE`` arguments name.

    Raises:
      UsageError: an unknown field, a bad value.
    """
    from ml_collections import config_flags

    check_fields(arguments, config)
    config = _read(config_flags.DEFINE_config_dataclass, config, arguments)
    check_values(config)
    return config


_MODEL = "config.model."


def _name(argument: str) -> str:
    return argument.lstrip("-").split("=", 1)[0]


def _read(define: Any, default: Any, arguments: Sequence[str]) -> Any:
    """The value of the flag ``config`` that ``define`` of ml_collections makes, after ``arguments``."""
    from absl import flags

    values = flags.FlagValues()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # absl explains itself there at length; one line is ours
            define("config", default, "", flag_values=values, sys_argv=["wsm", *arguments])
            values(["wsm", *arguments])
    except flags.Error as error:
        # An error of get_config comes with its traceback; the last line is what it says.
        *trace, last = str(error).strip().splitlines() or [""]
        inside = any("Traceback (most recent call last)" in line for line in trace)
        raise UsageError(f"--config: {last}" if inside else _line(error)) from error
    except SystemExit as error:
        raise UsageError(
            f"--config: the file ended the program (sys.exit({error.code!r})); it must return a Config"
        ) from error
    except Exception as error:  # the file is anybody's Python
        raise UsageError(f"--config: {type(error).__name__}: {_line(error)}") from error
    return values["config"].value


def _choose_family(config: Config, arguments: Sequence[str]) -> None:
    """Gives ``config`` the fields of the family that an argument asks for, with the values that families share."""
    asked = [argument.partition("=")[2] for argument in arguments if _name(argument) == f"{_MODEL}family"]
    if not asked or asked[-1] == config.model.family:
        return
    importlib.import_module("wsm_jax.models.model")  # whose families register their fields
    if asked[-1] in MODEL_FIELDS:
        shared: dict[str, Any] = {
            field.name: getattr(config.model, field.name) for field in dataclasses.fields(ModelFields)
        }
        config.model = MODEL_FIELDS[asked[-1]](**shared | {"family": asked[-1]})


def check_fields(arguments: Sequence[str], config: Config | None = None) -> None:
    """Raises UsageError for a ``--config`` that is no file, or a ``--config.field`` that ``config`` does not have."""
    known = flat_fields(config or Config())
    for argument in arguments:
        name = _name(argument)
        if "=" not in argument:
            raise UsageError(f"{argument}: write {argument.split('=')[0]}=VALUE")
        if name == "config":
            path = argument.split("=", 1)[1].split(":")[0]
            if not Path(path).is_file():
                raise UsageError(f"--config: no file {path}")
        elif name.removeprefix("config.") not in known:
            raise UsageError(f"unknown option --{name}{_nearest(name, known)}")


def _nearest(name: str, known: dict[str, Any]) -> str:
    """What to say of a field that there is not: the nearest of its group, else of all."""
    name = name.removeprefix("config.")
    group, _, field = name.rpartition(".")
    own = [path for path in known if path.rpartition(".")[0] == group]
    for paths in (own, known):
        fields = {path.rpartition(".")[2]: path for path in paths}
        named = [short for short in fields if field in short.split("_")]  # lr: peak_lr
        if found := next(iter(named), nearest(field, fields)):
            return f"; did you mean --config.{fields[found]}?"
    return "; wsm train --help lists all fields"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def names() -> list[str]:
    """``config.FIELD`` of all fields, as options name them; of the default model."""
    return [f"config.{name}" for name in flat_fields(Config())]


def help_text(arguments: Sequence[str] = ()) -> str:
    """All fields with type, default and help, for ``--help``; those of the model family that ``arguments`` ask for."""
    config = Config()
    _choose_family(config, arguments)
    lines = [
        f"configuration fields (--config.FIELD=VALUE), those of model.family={config.model.family}; with",
        "--config.model.family=NAME --help lists those of another:",
    ]
    for name, (value, text) in flat_fields(config).items():
        shown = repr(value) if isinstance(value, str) else str(value)
        lines.append(f"  {name}: {type(value).__name__} = {shown}\n      {text}")
    return "\n".join(lines)
