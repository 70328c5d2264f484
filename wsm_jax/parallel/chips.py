"""What chips can do and hold: peak dense bf16 rates, for MFU, and free memory.

Sources of the rates: vendors' data sheets (NVIDIA A100, H100 SXM and PCIe, H200: dense, without sparsity; Google Cloud
TPU v4, v5e, v5p, v6e).
"""

from typing import Any

import jax
from jax.sharding import Mesh

from wsm_jax.io import memory

# Longest matching name first: "NVIDIA H100 80GB HBM3" contains "H100".
PEAK_BF16_FLOPS = {
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
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
