"""``wsm plan``: whether a run fits on chips that are not here, how fast it can be, and what its streams take."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from wsm_jax.cli import config_flags
from wsm_jax.errors import UsageError
from wsm_jax.reporting.tables import print_table

if TYPE_CHECKING:
    from wsm_jax.config import Config
    from wsm_jax.parallel.topologies import Topology


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="e.g. v5e:4x4, v6e:2x4, v5p:4x4x8; a100:8, h100:8, h200:8 (estimated from shapes)",
    )
    sub.add_argument("--fast", action="store_true", help="estimate from shapes, in seconds; default: compile the step")
    sub.add_argument("--search", action="store_true", help="estimate every mesh of these chips, show the three best")
    sub.add_argument(
        "--disk_bandwidth", type=float, default=1.0, metavar="GB/S", help="of the whole run's storage (default: 1)"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm plan``: see :mod:`wsm_jax.planning`."""
    if not 0 < options.disk_bandwidth < float("inf"):
        raise UsageError(f"--disk_bandwidth={options.disk_bandwidth} must be positive, in GB/s")
    import jax

    jax.config.update("jax_platforms", "cpu")  # this process computes nothing
    config = config_flags.load(settings)
    from wsm_jax.parallel import topologies

    topology, bandwidth = topologies.parse(options.topology), options.disk_bandwidth * 1e9
    if options.search:
        _search(config, topology, bandwidth, options.json)
        return
    found, note = _plan(config, topology, bandwidth, options.fast or topology.chip.platform != "tpu")
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print_table(["figure", "value"], rows(found), title=f"{topology.name}: {found['how']}")
    print("\n".join(lines(found, note)))


def _plan(config: "Config", topology: "Topology", bandwidth: float, fast: bool) -> tuple[dict[str, Any], str]:
    from wsm_jax.planning import compiled, knobs
    from wsm_jax.planning.fast import Estimator
    from wsm_jax.planning.figures import figures
    from wsm_jax.planning.planned import planned

    estimator = Estimator()
    if fast:
        planning = planned(config, topology)
        needs = estimator(planning)
    else:
        planning, needs = compiled.compile_step(config, topology, _say)
    found = figures(planning, needs, bandwidth)
    if not found["fits"]:
        found["knobs"] = [vars(knob) for knob in knobs.tried(planning, needs.total, estimator)]
    return found, planning.note


def _search(config: "Config", topology: "Topology", bandwidth: float, as_json: bool) -> None:
    from wsm_jax.planning import search

    found = search.best(config, topology, bandwidth)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    header = ["mesh", "GB a chip", "of", "fits", "step", "bound by", "MFU at most"]
    shown = [
        [
            " ".join(f"{axis}={size}" for axis, size in one["mesh"].items() if size > 1) or "one chip",
            f"{one['bytes_per_device'] / 1e9:.2f}",
            f"{one['hbm_per_device'] / 1e9:.0f}",
            "yes" if one["fits"] else "no",
            _duration(one["roofline_step_seconds"]),
            one["bound_by"],
            f"{one['mfu_bound']:.2f}",
        ]
        for one in found
    ]
    print_table(header, shown, title=f"{topology.name}: the best meshes, {found[0]['how']}")
    print(" ".join(f"--config.mesh.{axis}={size}" for axis, size in found[0]["mesh"].items()))


# --- what is shown ---------------------------------------------------------------------------------------------------


def rows(found: dict[str, Any]) -> list[list[str]]:
    """(figure, value) of a plan, as people read them."""
    split, disk, saves = found["bytes_split"], found["disk_bytes"], found["save_seconds"]
    sent = ", ".join(f"{axis} {_size(count)}" for axis, count in found["collective_bytes"].items())
    busy = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in found["busy_seconds"].items())
    mesh = " ".join(f"{axis}={size}" for axis, size in found["mesh"].items() if size > 1)
    rate = found["disk_bandwidth"] / 1e9
    return [
        ["chips", f"{found['chips']} ({mesh or 'one device'})"],
        ["parameters", f"{found['parameters']:,}"],
        ["active parameters", f"{found['active_parameters']:,}"],
        ["a chip holds", f"{_size(found['bytes_per_device'])} of {_size(found['hbm_per_device'])}"],
        *([f"  {name}", _size(count)] for name, count in split.items()),
        ["FLOPs a step", f"{found['flops_per_step']:.4g}"],
        ["a chip sends a step", sent or "nothing"],
        [
            "a step takes at least",
            f"{_duration(found['roofline_step_seconds'])}, bound by {found['bound_by']} ({busy})",
        ],
        ["MFU at most", f"{found['mfu_bound']:.2f}"],
        ["tokens a day, at most", f"{found['tokens_per_day']:.3g}"],
        ["the run, at least", _duration(found["days"] * 86400)],
        ["disk", f"merge stream {_size(disk['merge'])}, full states {_size(disk['resume'])}"],
        [f"saves, at {rate:g} GB/s", f"merge {_duration(saves['merge'])}, full {_duration(saves['resume'])}"],
        [f"a merge of {found['merged_checkpoints']}, at {rate:g} GB/s", _duration(found["merge_seconds"])],
        ["the chip's figures", found["chip_source"]],
    ]


def lines(found: dict[str, Any], note: str) -> list[str]:
    """Whether it fits, or how much is missing and what helps."""
    used, room = found["bytes_per_device"], found["hbm_per_device"]
    if found["fits"]:
        return [f"fits: {used / room:.0%} of the memory (at most 95%)", *filter(None, [note])]
    said = [f"does not fit: {_size(found['over'])} a chip over 95% of {_size(room)}"]
    said += ["what would help, by the estimator, the best first:"] if found["knobs"] else []
    for knob in found["knobs"]:
        change = f"saves {_size(knob['saved'])}" if knob["saved"] >= 0 else f"costs {_size(-knob['saved'])}"
        said.append(f"  {knob['flags']}: {change}{', and fits' if knob['fits'] else ''}")
    return [*said, *filter(None, [note])]


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.3g} kB"


def _duration(seconds: float) -> str:
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
