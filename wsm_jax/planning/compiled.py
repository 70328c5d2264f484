"""What a run takes of each chip, by the compiler: the train step itself, compiled for chips that are not here."""

import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax.config import Config
from wsm_jax.parallel import chips, sharding, topologies
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel.topologies import Topology
from wsm_jax.planning import hlo
from wsm_jax.planning.needs import Needs
from wsm_jax.planning.planned import Planned, planned
from wsm_jax.training.train_step import jit_train_step

Say = Callable[[str], None]
_ALIVE = 10  # seconds between signs of life
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_step(config: Config, topology: Topology, say: Say) -> tuple[Planned, Needs]:
    """Compiles the train step of ``config`` for a TPU topology.

    Args:
      config: of the run.
      topology: of chips that are not here.
      say: is told what is being done, every few seconds.

    Raises:
      UsageError: what cannot be trained there, or cannot be compiled here, before anything is compiled.
    """
    topologies.check_can_compile(topology)
    mesh = topologies.mesh(topology, mesh_lib.axes(config.mesh, topology.count))
    run = planned(config, topology, mesh)
    return run, measure(run, say)


def measure(run: Planned, say: Say) -> Needs:
    """The needs of a run whose mesh is of devices that the compiler knows.

    A program that is larger than the memory is told by how much, and nothing else of it.
    """
    where = sharding.batch_sharding(run.mesh)
    shape = (run.config.batch_size, run.config.model.context)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where) for name in ("inputs", "targets")}
    step: Any = jit_train_step(run.model, run.optimizer, run.mesh, run.state, accumulate=run.config.accumulate)
    begun = time.monotonic()
    with _alive(say, f"tracing {run.topology.name}"), chips.programs_for(run.topology.chip.platform):
        lowered = step.lower(run.state, batch)
    try:
        with _alive(say, f"compiling for {run.topology.name}"):
            program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = _used(str(error))
        if not used:
            raise
        held = run.state_bytes + run.batch_bytes
        return Needs(_how(begun) + ", too large", run.state_bytes, max(used - held, 0), run.batch_bytes, {})
    memory = program.memory_analysis()
    batch_bytes = run.batch_bytes
    return Needs(
        how=_how(begun),
        state=memory.argument_size_in_bytes - batch_bytes,
        temporaries=memory.temp_size_in_bytes,
        batch=batch_bytes,
        collectives=hlo.bytes_sent(program.as_text(), run.axes),
    )


def _how(begun: float) -> str:
    seconds, held = time.monotonic() - begun, _host_memory() / 1e9
    return f"compiled by jax {jax.__version__} in {seconds:.0f} s and {held:.1f} GB of memory"


def _host_memory() -> int:
    """Most bytes that this process has held."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _used(message: str) -> int:
    """Bytes that a program would take that the compiler refused; 0 where it was refused for something else."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


@contextmanager
def _alive(say: Say, what: str) -> Iterator[None]:
    """Within it, says every few seconds what is going on, for how long and in how much memory."""
    begun, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(_ALIVE):
            say(f"{what}: {time.monotonic() - begun:.0f} s, {_host_memory() / 1e9:.1f} GB of memory")

    say(what)
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
