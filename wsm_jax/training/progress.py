"""Metrics of the steps since the last look, fetched together, checked, written and shown."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from wsm_jax.core.schedules import Schedule
from wsm_jax.errors import NonFiniteError, UsageError
from wsm_jax.parallel import chips
from wsm_jax.training.metrics import Writer


class Progress:
    """Keeps the metrics of dispatched steps on the device until :meth:`flush`; the loop never waits in between.

    Args:
      writer: where records go.
      schedule: update count -> rate, to report the rate.
      tokens_per_step: tokens in one update.
      tokens_read: step -> tokens that were read up to it.
      flops_per_token: training FLOPs, for TFLOP/s, and for MFU where the device's peak is known.
      stops: metrics of a step -> why the run must not go on after it, or "".
      start: updates done before the first :meth:`add`.
      total: updates in the whole run.
      name: shown before the bar.
      quiet: no bar.
    """

    def __init__(
        self,
        writer: Writer,
        schedule: Schedule,
        *,
        tokens_per_step: int,
        tokens_read: Callable[[int], int],
        flops_per_token: float,
        stops: Callable[[Mapping[str, float]], str] = lambda metrics: "",
        start: int,
        total: int,
        name: str,
        quiet: bool,
    ):
        self._writer, self._schedule = writer, schedule
        self._tokens_per_step, self._flops_per_token = tokens_per_step, flops_per_token
        self._tokens_read, self._stops = tokens_read, stops
        peak = chips.peak_flops()
        self._peak = peak * jax.device_count() if peak else None
        self._done = start
        self._pending: list[dict[str, Any]] = []
        self._bar = tqdm(total=total, initial=start, unit="step", desc=name, disable=quiet, smoothing=0.1)
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, so that tokens/s counts updates and not what was done between them."""
        self._clock, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within it as waiting for the next batch, where the device had nothing left to do at its end.

        A batch that is read while an update computes costs nothing.
        """
        clock = time.perf_counter()
        yield
        if not self._pending or all(value.is_ready() for value in self._pending[-1].values()):
            self._waited += time.perf_counter() - clock

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Metrics of the next step, not waited for."""
        self._pending.append(metrics)

    def flush(self) -> None:
        """Waits for the steps added since the last flush and writes one record of their means.

        Raises:
          NonFiniteError: the loss or gradient of one of them is not finite, naming the first.
          UsageError: the run must not go on after one of them.
        """
        if not self._pending:
            return
        values = {name: np.asarray([m[name] for m in jax.device_get(self._pending)]) for name in self._pending[0]}
        count, self._pending = len(self._pending), []
        seconds = time.perf_counter() - self._clock
        bad = np.flatnonzero(~np.all([np.isfinite(v) for v in values.values()], axis=0))
        if bad.size:
            step = self._done + int(bad[0]) + 1
            found = ", ".join(f"{name} {v[bad[0]]}" for name, v in values.items())
            raise NonFiniteError(step, f"step {step}: {found}; nothing after step {self._done} was saved")
        for i in range(count):
            if reason := self._stops({name: float(v[i]) for name, v in values.items()}):
                raise UsageError(f"step {self._done + i + 1}: {reason}; nothing after step {self._done} was saved")
        self._done += count
        speed = count * self._tokens_per_step / seconds
        record: dict[str, Any] = {
            "tokens": self._tokens_read(self._done),
            **{name: float(v.mean(dtype=np.float64)) for name, v in values.items()},
            "learning_rate": float(self._schedule(self._done - 1)),
            "tokens_per_second": round(speed, 1),
            "seconds": round(seconds, 4),
            "data_seconds": round(self._waited, 4),
            "tflops_per_second": float(f"{speed * self._flops_per_token / 1e12:.4g}"),
        }
        shown = {
            "loss": f"{record['loss']:.3f}",
            "lr": f"{record['learning_rate']:.1e}",
            "tok/s": f"{speed:,.0f}",
            "TFLOP/s": f"{record['tflops_per_second']:.3g}",
        }
        if self._peak:
            record["mfu"] = speed * self._flops_per_token / self._peak
            shown["mfu"] = f"{record['mfu']:.1%}"
        self._writer.write("train", self._done, **record)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(count)
        self.restart()

    def say(self, message: str) -> None:
        """One line above the bar."""
        if not self._bar.disable:
            self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
