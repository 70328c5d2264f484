"""Where a run's numbers go: metrics.jsonl always, TensorBoard and Weights & Biases when asked for."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints.run import read_metrics
from wsm_jax.config import LogConfig
from wsm_jax.errors import UsageError
from wsm_jax.io import disk, places
from wsm_jax.io.files import Lines, write_jsonl

JSONL = "metrics.jsonl"


class Writer:
    """Appends records ``{"kind", "step", ...}``; only process 0 writes.

    Args:
      directory: the run directory.
      config: which trackers beside the file.
      start_step: records after this step are dropped: a resumed run writes them again.
      settings: the run's configuration, for the trackers.
      enabled: False on every process but one.

    Raises:
      UsageError: a tracker was asked for and is not installed.
    """

    def __init__(
        self, directory: Path, config: LogConfig, *, start_step: int, settings: dict[str, Any], enabled: bool = True
    ):
        self._file = self._board = self._wandb = None
        if not enabled:
            return
        path = directory / JSONL
        _drop_after(path, start_step)
        self._path, self._file = path, Lines(path)
        if config.tensorboard:
            self._board = _import("tensorboardX", "tensorboard").SummaryWriter(
                str(directory / "tensorboard"), purge_step=start_step + 1
            )
        if config.wandb:
            folder = directory.absolute()
            self._wandb = _import("wandb", "wandb").init(
                project=config.wandb,
                name=folder.name,
                id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],  # runs/a/constant is not runs/b/constant
                resume="allow",
                config=settings,
            )

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One record; ``values`` are JSON-ready."""
        if self._file is None:
            return
        # JSON knows no NaN (a standard error over one document is one).
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        with disk.writing(self._path, len(line)):
            self._file.add(line)
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def flush(self) -> None:
        """Returns when all records are where others read them."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._file is not None:
            with disk.writing(self._path, lambda: 0):
                self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_trackers(config: LogConfig, directory: Path = Path()) -> None:
    """Raises UsageError where a tracker was asked for that is not installed, or cannot write into ``directory``."""
    if config.tensorboard and places.on_bucket(directory):
        raise UsageError(f"log.tensorboard writes files, and {directory} is in a bucket; log.wandb goes with it")
    if config.tensorboard:
        _import("tensorboardX", "tensorboard")
    if config.wandb:
        _import("wandb", "wandb")


def _import(module: str, extra: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise UsageError(f'log.{extra} needs {module}: pip install "wsm-jax[{extra}]"') from error


def _drop_after(path: Path, step: int) -> None:
    """Rewrites the file without the records after ``step`` (and without a half-written last line), atomically."""
    if not path.is_file():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_jsonl(path, kept)
