"""``--config=FILE --config.field=value``, read by ml_collections.config_flags into a :class:`Config`."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsm_jax.config import Config, check_values, flat_fields
from wsm_jax.errors import UsageError


def load(arguments: Sequence[str]) -> Config:
    """The configuration that ``--config=...`` and ``--config.*=...`` arguments describe.

    Raises:
      UsageError: no ``--config``, a file that is missing or does not make a Config, an unknown field, a bad value.
    """
    from absl import flags
    from ml_collections import config_flags

    check_fields(arguments)
    if not any(argument.lstrip("-").startswith("config=") for argument in arguments):
        raise UsageError("--config=FILE is missing; e.g. --config=configs/tiny.py")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=["wsm", *arguments])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # absl explains itself there at length; one line is ours
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
    config = values["config"].value
    if not isinstance(config, Config):
        raise UsageError(f"--config: get_config() must return a wsm_jax.Config, not {type(config).__name__}")
    check_values(config)
    return config


def check_fields(arguments: Sequence[str]) -> None:
    """Raises UsageError for a ``--config`` that is no file, or an unknown ``--config.field``."""
    known = flat_fields(Config())
    names = [argument.lstrip("-").split("=", 1)[0] for argument in arguments]
    for name, argument in zip(names, arguments, strict=True):
        if "=" not in argument:
            raise UsageError(f"{argument}: write {argument.split('=')[0]}=VALUE")
        if name == "config":
            path = argument.split("=", 1)[1].split(":")[0]
            if not Path(path).is_file():
                raise UsageError(f"--config: no file {path}")
        elif name.removeprefix("config.") not in known:
            raise UsageError(f"unknown option --{name}{_nearest(name, known)}")


def _nearest(name: str, known: dict[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name.removeprefix("config."), known, n=1, cutoff=0.5)
    return f"; did you mean --config.{close[0]}?" if close else "; wsm train --help lists all fields"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def help_text() -> str:
    """All fields with type, default and help, for ``--help``."""
    lines = ["configuration fields (--config.FIELD=VALUE):"]
    for name, (value, text) in flat_fields(Config()).items():
        shown = repr(value) if isinstance(value, str) else str(value)
        lines.append(f"  {name}: {type(value).__name__} = {shown}\n      {text}")
    return "\n".join(lines)
