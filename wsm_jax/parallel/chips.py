"""What chips can do and hold: rates, memory and links, for plans and MFU; and which of them a program is for."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from wsm_jax.io import memory


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as its vendor describes it.

    Attributes:
      kind: part of what JAX calls it (``device_kind``).
      platform: ``tpu`` or ``gpu``.
      flops: dense bf16 FLOP/s, without sparsity.
      hbm: bytes of memory.
      hbm_bandwidth: bytes/s to and from it.
      link: bytes/s that it sends to its neighbours, all links together, one direction.
      shape: most chips along each dimension of a slice; of GPUs, those that links join.
      network: bytes/s that it sends beyond them; 0 where there is no beyond.
      source: where these figures are from.
    """

    kind: str
    platform: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    link: float
    shape: tuple[int, ...]
    network: float
    source: str


_GOOGLE = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
CHIPS = {
    "v5e": Chip("TPU v5 lite", "tpu", 197e12, 16e9, 819e9, 200e9, (16, 16), 0, f"{_GOOGLE}/v5e"),
    "v5p": Chip("TPU v5p", "tpu", 459e12, 95e9, 2765e9, 600e9, (16, 16, 24), 0, f"{_GOOGLE}/v5p"),
    "v6e": Chip("TPU v6 lite", "tpu", 918e12, 32e9, 1638e9, 400e9, (16, 16), 0, f"{_GOOGLE}/v6e"),
    # NVLink inside a machine of eight, one InfiniBand port for each GPU between them (DGX).
    "a100": Chip("A100", "gpu", 312e12, 80e9, 2039e9, 300e9, (8,), 25e9, f"{_NVIDIA}/a100/"),
    "h100": Chip("H100", "gpu", 989e12, 80e9, 3350e9, 450e9, (8,), 50e9, f"{_NVIDIA}/h100/"),
    "h200": Chip("H200", "gpu", 989e12, 141e9, 4800e9, 450e9, (8,), 50e9, f"{_NVIDIA}/h200/"),
}

# Chips that are trained on and not planned for, and other names of those above; the longest matching name first:
# "NVIDIA H100 80GB HBM3" contains "H100".
PEAK_BF16_FLOPS = {
    "H100 PCIe": 756e12,
    **{chip.kind: chip.flops for chip in CHIPS.values()},
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def peak_flops(device: Any = None) -> float | None:
    """Dense bf16 FLOP/s of ``device`` (default: the first), or None where it is not known (CPUs)."""
    return peak_of((device or jax.devices()[0]).device_kind)


def peak_of(kind: str) -> float | None:
    """Dense bf16 FLOP/s of the chip that its vendor calls ``kind``, or None where it is not known."""
    return next((peak for name, peak in PEAK_BF16_FLOPS.items() if name in kind), None)


def free_memory(mesh: Mesh) -> int:
    """Bytes free for each device of this process: its own, or its share of the host's."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if all(stats):
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s)
    return memory.free() // len(stats)


_made_for: contextvars.ContextVar[str] = contextvars.ContextVar("made_for", default="")


@contextlib.contextmanager
def programs_for(platform: str) -> Iterator[None]:
    """While a program is traced that another machine will run: what suits ``tpu``, ``gpu`` or ``cpu`` is picked."""
    token = _made_for.set(platform)
    try:
        yield
    finally:
        _made_for.reset(token)


def backend() -> str:
    """The platform that a traced program will run on: JAX's default one, or that of :func:`programs_for`."""
    return _made_for.get() or jax.default_backend()
