"""The figures of a plan: does it fit, what bounds an update, what the disk takes. Plain values, ready for JSON."""

from typing import Any

import jax

from wsm_jax.io.disk import tree_bytes
from wsm_jax.models import model as model_lib
from wsm_jax.parallel import sharding
from wsm_jax.planning.needs import HEADROOM, Needs
from wsm_jax.planning.planned import Planned
from wsm_jax.training import forecast, train_state

MERGED = 16  # checkpoints of the paper's best merge
DISK = 1e9  # bytes/s
_DAY = 24 * 3600
_RECOMPUTED = 4 / 3  # of the work of an update, where the forward pass is done twice


def figures(planned: Planned, needs: Needs, disk_bandwidth: float = DISK) -> dict[str, Any]:
    """Everything that is told of a plan.

    Args:
      planned: the run and its chips.
      needs: what it takes of each.
      disk_bandwidth: bytes/s that checkpoints are written and read with, of the whole run.
    """
    chip, config = planned.topology.chip, planned.model.config
    return {
        "topology": planned.topology.name,
        "chips": planned.topology.count,
        "mesh": dict(planned.axes),
        "how": needs.how,
        "parameters": planned.parameters,
        "active_parameters": model_lib.active_parameters(config, planned.parameters),
        "bytes_per_device": needs.total,
        "bytes_split": {"state": needs.state, "temporaries": needs.temporaries, "batch": needs.batch},
        "hbm_per_device": int(chip.hbm),
        "fits": needs.total <= HEADROOM * chip.hbm,
        "over": max(0, round(needs.total - HEADROOM * chip.hbm)),
        **_speed(planned, needs),
        **_disk(planned, disk_bandwidth),
        "chip_source": chip.source,
    }


def step_seconds(planned: Planned, needs: Needs) -> dict[str, float]:
    """Resource -> seconds that an update keeps it busy at least; the longest is the roofline's step time.

    ``compute``: the FLOPs, with those of a second forward pass, at the chip's peak. ``memory``: the state read and
    written once; the parameters in the compute dtype read for the forward pass and twice for the backward one, and what
    is kept between them written and read, for every micro-batch. ``links``: all that is sent, over all links at once.
    """
    chip, times = planned.topology.chip, planned.config.accumulate
    fetched = jax.tree.leaves(planned.part((sharding.TENSOR, sharding.EXPERT)))
    weights = sum(leaf.size for leaf in fetched) * planned.width
    moved = 2 * needs.state + times * (3 * weights + 2 * needs.temporaries)
    work = flops(planned) * (_RECOMPUTED if planned.recomputes else 1)
    return {
        "compute": work / (planned.topology.count * chip.flops),
        "memory": moved / chip.hbm_bandwidth,
        "links": sum(needs.collectives.values()) / planned.topology.link,
    }


def flops(planned: Planned) -> float:
    """Of one update, as MFU counts them."""
    config = planned.model.config
    return model_lib.flops_per_token(config, planned.parameters) * planned.plan.tokens_per_step


def _speed(planned: Planned, needs: Needs) -> dict[str, Any]:
    busy = step_seconds(planned, needs)
    binding = max(busy, key=lambda resource: busy[resource])
    peak = planned.topology.count * planned.topology.chip.flops
    return {
        "flops_per_step": flops(planned),
        "collective_bytes": {axis: round(sent) for axis, sent in needs.collectives.items()},
        "roofline_step_seconds": busy[binding],
        "busy_seconds": busy,
        "bound_by": binding,
        "mfu_bound": flops(planned) / (peak * busy[binding]),
        "tokens_per_day": planned.plan.tokens_per_step / busy[binding] * _DAY,
        "days": planned.plan.steps * busy[binding] / _DAY,
    }


def _disk(planned: Planned, bandwidth: float) -> dict[str, Any]:
    full = train_state.items(planned.state)
    merge, resume = forecast.both_streams(planned.config, planned.plan, full, planned.saved, 0)
    merged = min(MERGED, len(planned.plan.merge_steps()))
    return {
        "disk_bytes": {"merge": merge, "resume": resume},
        "disk_bandwidth": bandwidth,
        "save_seconds": {"merge": tree_bytes(planned.saved) / bandwidth, "resume": tree_bytes(full) / bandwidth},
        "merged_checkpoints": merged,
        "merge_seconds": (merged + 1) * tree_bytes(planned.state["params"]) / bandwidth,  # reads them, writes one
    }
