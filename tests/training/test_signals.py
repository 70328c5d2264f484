"""A stop that one of two processes is asked for is a stop of both, at the same step; and what a chip can do."""

import os
import re
import signal
import types

import pytest

from tests.two_processes import two_processes
from wsm_jax.parallel import chips
from wsm_jax.training.signals import StopSignals

PROCESS = """
import os, signal, sys, time
import jax
from wsm_jax.training.signals import StopSignals

jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
with StopSignals() as signals:
    for step in range(1, 600):
        if step == 5 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if signals.stopping(step):
            break
        time.sleep(0.05)
print("stopped after", step)
"""


def test_two_processes_stop_at_the_same_step():
    outcomes = two_processes(PROCESS, environment={**os.environ, "JAX_PLATFORMS": "cpu"})
    first, second = (int(re.findall(r"stopped after (\d+)", printed)[0]) for printed in outcomes)
    assert 5 <= first == second < 599


def test_a_second_interrupt_is_obeyed_at_once():
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.stopping(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_the_peak_rate_of_an_accelerator(kind, peak):
    assert chips.peak_flops(types.SimpleNamespace(device_kind=kind)) == peak
