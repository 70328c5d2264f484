"""The demo: a constant-rate run, three real decays branched from it, every merge, one table.

    python -m experiments.demo --seed=0 --output=runs/demo-0       (what `make demo` runs)

Protocol: configs/demo.py at a constant rate; from its checkpoint at 3/4 of the run three real decays (linear, cosine,
1-sqrt) to zero over the last quarter, on the tokens the constant run reads there; then every merge curve over several
windows. Curve and window are chosen on validation, the table is on test. The configuration was fixed on seed 0 before
seeds 1 and 2 were run. The same command again goes on where it stopped.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.cli import config_flags
from wsm_jax.errors import UsageError, ended
from wsm_jax.io import files

CONFIG = Path(__file__).parent.parent / "configs" / "demo.py"
CURVES = ("linear", "cosine", "minus_sqrt")
NEXT = """
The merges cost no training; each real decay cost a quarter of the run again. What they share is in the sentences above,
the figures are in {output}/report (report.html), and the demo took {seconds:.0f} s.

What to type next:
  wsm merge CHECKPOINTS --curve=minus_sqrt --count=8 --output=OUT     merge your own checkpoints (docs/merging.md)
  wsm train --config=configs/tiny.py --config.data.source=text:FOLDER --run=runs/mine      train on your own text
  wsm sweep experiments/ablation.py                                   the paper's ablation: duration, interval, count"""


def commands(output: Path, seed: int, overrides: list[str]) -> list[list[str]]:
    """The ``wsm`` commands of the demo, in order; ``overrides`` are further ``--config.field=value``."""
    settings = [f"--config={CONFIG}", f"--config.seed={seed}", *overrides]
    points = plan_lib.plan(config_flags.load(settings)).branch_points
    if not points:
        raise UsageError("checkpoint.branch_points is empty, but the real decays leave the run at the first of them")
    base = output / "constant"
    decays = [output / f"decay-{curve}" for curve in CURVES]
    return [
        ["train", *settings, f"--run={base}"],
        *(
            [
                "train",
                *settings,
                f"--run={folder}",
                f"--branch_from={base}@{points[0]}",
                "--config.schedule.name=cooldown",
                f"--config.schedule.curve={curve}",
            ]
            for curve, folder in zip(CURVES, decays, strict=True)
        ),
        ["report", str(base), *map(str, decays), f"--output={output / 'report'}"],
    ]


def main() -> int:
    """Runs the commands one after the other, each as a process of its own, and stops at the first that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and data order")
    parser.add_argument("--output", type=Path, default=None, help="default: runs/demo-SEED")
    options, overrides = parser.parse_known_args()
    output = options.output or Path("runs") / f"demo-{options.seed}"
    stages: dict[str, float] = {}
    todo = commands(output, options.seed, overrides)
    for number, command in enumerate(todo, 1):
        print(f"\n[{number}/{len(todo)}] wsm {' '.join(command)}", file=sys.stderr, flush=True)
        clock = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "wsm_jax", *command])
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the process saves where it is and ends by itself
            process.terminate()
            status = process.wait() or 130
        if status:
            return status
        stages[f"{number} {command[0]}"] = round(time.perf_counter() - clock, 1)
    files.write_json(output / "report" / "seconds.json", stages)
    print(NEXT.format(output=output, seconds=sum(stages.values())))
    return 0


if __name__ == "__main__":
    sys.exit(ended("demo", main))
