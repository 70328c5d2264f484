"""What fits where: every preset on slices of TPUs and on eight GPUs.

    python -m experiments.plan_table                                         (estimated from shapes: minutes)
    python -m experiments.plan_table --compile=600 [--only=gpt2_small,…]     (and compiled; Python 3.12, [train,tpu])

A chip has about 8,192 tokens of a batch. Of the RECIPES the first is taken that fits. With ``--compile`` every preset
is compiled too where it fits on the fewest chips, by the compiler's figures, within so many seconds each; what was
compiled before stays. Written to results/plan: plans.jsonl, and README.md made of it.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs import preset
from wsm_jax.config import with_fields
from wsm_jax.errors import UsageError, ended
from wsm_jax.io.files import read_jsonl, write_text
from wsm_jax.models import family
from wsm_jax.parallel import topologies
from wsm_jax.planning.fast import Estimator
from wsm_jax.planning.figures import figures
from wsm_jax.planning.planned import planned
from wsm_jax.reporting.tables import markdown_table

ROOT = Path(__file__).parent.parent
TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "v5p:2x2x1", "v5e:16x16", "v6e:16x16", "v5p:4x4x8", "h100:8")
TOKENS = 8192  # of a batch, on each chip
RECIPES: dict[str, dict[str, Any]] = {
    "data": {},
    "fsdp": {},
    "fsdp, remat": {"model.remat": "full"},
    "fsdp, remat, loss in 16 parts": {"model.remat": "full", "model.loss_blocks": 16},
}
CUT = tuple(RECIPES)[1:]
Record = dict[str, Any]


def presets() -> list[str]:
    """Of all families, those of one after the other."""
    return [name for kind in family.families().values() for name in kind.presets]


def meshes(name: str, chips: int) -> Iterator[dict[str, int]]:
    """Fields of meshes that cut the state, the finest first; experts over at most eight chips."""
    model = preset.get_config(name).model
    has_experts = any("expert" in leaf.axes for leaf in family.of(model).leaves(model).values())
    expert = math.gcd(chips, 8) if has_experts else 1
    fsdp = chips // expert
    while fsdp > 1:
        yield {"mesh.fsdp": fsdp, "mesh.expert": expert}
        fsdp //= 2


def estimated(name: str, topology: str, estimator: Estimator) -> Record:
    """The first recipe that fits, or the last one; ``fields`` is what it changes of configs/preset.py."""
    where, base = topologies.parse(topology), preset.get_config(name)
    batch = {"batch_size": where.count * max(1, TOKENS // base.model.context)}
    found: Record = {"preset": name, "topology": topology}
    for recipe, changes in RECIPES.items():
        for mesh in meshes(name, where.count) if recipe in CUT else [{}]:
            fields = {**batch, **mesh, **changes}
            try:
                run = planned(
                    with_fields(base, **{field.replace(".", "__"): value for field, value in fields.items()}), where
                )
            except UsageError as error:
                found["refused"] = str(error)
                continue
            found |= {"recipe": recipe, "fields": fields, "figures": figures(run, estimator(run))}
            break
        if found.get("figures", {}).get("fits"):
            break
    return found


def compiled(record: Record, seconds: float) -> Record:
    """The same cell by the compiler, in a process of its own; or why it is not."""
    command = [sys.executable, "-m", "wsm_jax", "plan", f"--config=configs/preset.py:{record['preset']}"]
    command += [
        f"--topology={record['topology']}",
        "--json",
        *(f"--config.{k}={v}" for k, v in record["fields"].items()),
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {**record, "compiled": None, "why": f"not within {seconds:.0f} s"}
    if done.returncode:
        return {**record, "compiled": None, "why": done.stderr.strip().splitlines()[-1]}
    return {**record, "compiled": json.loads(done.stdout)}


def smallest(records: list[Record]) -> list[Record]:
    """Of every preset the cell of a TPU with the fewest chips, and then the least memory, that it fits on."""
    best: dict[str, Record] = {}
    for record in records:
        found = record.get("compiled") or record.get("figures", {})  # the compiler has the last word
        fits = found.get("fits") and not record["topology"].startswith("h100")
        if fits and (record["preset"] not in best or _cost(record) < _cost(best[record["preset"]])):
            best[record["preset"]] = record
    return list(best.values())


def _cost(record: Record) -> tuple[int, int]:
    return record["figures"]["chips"], record["figures"]["hbm_per_device"]


def page(records: list[Record]) -> str:
    """results/plan/README.md."""
    cells = {(record["preset"], record["topology"]): record for record in records}
    names = list(dict.fromkeys(record["preset"] for record in records))
    table = [["preset", *TOPOLOGIES]]
    for name in names:
        table.append([name, *(_cell(cells[name, topology]) for topology in TOPOLOGIES)])
    compared = [
        ["preset, chips", "recipe", "state, GB", "temporaries, GB", "estimated", "sent a step, GB", "estimated", ""]
    ]
    for record in records:
        if done := record.get("compiled"):
            compared.append(_comparison(record, done))
    missing = [f"{r['preset']} on {r['topology']}: {r['why']}" for r in records if r.get("why")]
    refused = [f"{r['preset']} on {r['topology']}: {r['refused']}" for r in records if "figures" not in r]
    return "\n".join(
        [
            "# What fits where",
            "",
            "GB of a chip's memory with AdamW and about 8,192 tokens of a batch on each chip; at most 95% may be "
            "taken. **c** compiled ahead of time for that slice, *f* estimated from shapes (`wsm plan --fast`). Then "
            "what was needed: data parallelism alone (no word), fsdp, with full recomputation (R), and the loss in 16 "
            "parts (L). – does not fit, with what it would take. Last the bound on MFU, of the roofline. "
            "Made by `python -m experiments.plan_table`, and cells compiled with `--compile=SECONDS`.",
            "",
            *markdown_table(table),
            "",
            "## Compiled beside estimated",
            "",
            *markdown_table(compared),
            *(["", "Not compiled: " + "; ".join(missing) + "."] if missing else []),
            *(["", "Refused: " + "; ".join(refused) + "."] if refused else []),
            "",
        ]
    )


_SHORT = dict(zip(RECIPES, ("", " fsdp", " fsdp R", " fsdp R L"), strict=True))


def _cell(record: Record) -> str:
    if "figures" not in record:
        return "refused"
    found = record.get("compiled") or record["figures"]
    how = "**c**" if record.get("compiled") else "*f*"
    if not found["fits"]:
        return f"– {found['bytes_per_device'] / 1e9:.0f} {how}"
    return f"{found['bytes_per_device'] / 1e9:.1f}{_SHORT[record['recipe']]} {found['mfu_bound']:.2f} {how}"


def _comparison(record: Record, done: dict[str, Any]) -> list[str]:
    fast = record["figures"]
    split, guess = done["bytes_split"], fast["bytes_split"]
    sent, guessed = (sum(found["collective_bytes"].values()) for found in (done, fast))
    return [
        f"{record['preset']}, {record['topology']}",
        record["recipe"],
        f"{split['state'] / 1e9:.2f}",
        f"{split['temporaries'] / 1e9:.2f}",
        f"{guess['temporaries'] / 1e9:.2f}",
        f"{sent / 1e9:.2f}",
        f"{guessed / 1e9:.2f}",
        done["how"].removeprefix("compiled "),
    ]


def main() -> int:
    """Estimates and, where it is asked for, compiles; writes after every cell that was compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", type=float, default=0, metavar="SECONDS", help="limit of each; default: none")
    parser.add_argument("--only", default="", help="comma-separated presets to compile; default: all")
    parser.add_argument("--also", default="", help="comma-separated PRESET@TOPOLOGY to compile besides")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "plan")
    options = parser.parse_args()
    return ended("plan_table", lambda: make(options))


def make(options: argparse.Namespace) -> int:
    """The whole table."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    file, estimator = options.output / "plans.jsonl", Estimator()
    known = {(r["preset"], r["topology"]): r for r in (read_jsonl(file) if file.exists() else [])}
    records = []
    for name in presets():
        for topology in TOPOLOGIES:
            record, old = estimated(name, topology, estimator), known.get((name, topology), {})
            kept = old.get("compiled") if old.get("fields") == record.get("fields") else None
            records.append({**record, "compiled": kept} if kept else record)
        _write(options.output, records)
        print(name, flush=True)
    only, also = options.only.split(",") if options.only else [], options.also.split(",") if options.also else []

    def missing() -> list[Record]:
        """Cells to compile; another of a preset where one turned out not to fit."""
        chosen = [r for r in smallest(records) if not only or r["preset"] in only] if options.compile else []
        chosen += [r for r in records if f"{r['preset']}@{r['topology']}" in also]
        return [r for r in chosen if "compiled" not in r]

    while waiting := missing():
        record = waiting[0]
        records[records.index(record)] = compiled(record, options.compile)
        _write(options.output, records)
        print(record["preset"], record["topology"], "compiled", flush=True)
    return 0


def _write(output: Path, records: list[Record]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "plans.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_text(output / "README.md", page(records))


if __name__ == "__main__":
    sys.exit(main())
