"""Every table and figure of a scale, one after the other, and one report of them.

    python -m experiments.all [--scale=small] [--parallel=2] [--config.FIELD=VALUE ...]

Tunes the peak rates, trains the shared runs, makes each experiment's page in results/EXPERIMENT/SCALE and collects the
pages in results/REPORT-SCALE.md. What is done is not done again.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

NAMES = (
    "tuning",
    "training",
    "wsd_vs_wsm",
    "merge_algorithm",
    "merge_duration",
    "merge_granularity",
    "emulation",
    "gap",
    "combine",
    "continue_training",
    "trajectory",
    "cost",
)
RESULTS = Path("results")


def main() -> int:
    """Runs them in order and stops at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--scale", default="small")
    scale = parser.parse_known_args()[0].scale
    start = time.perf_counter()
    for number, name in enumerate(NAMES, 1):
        print(f"\n[{number}/{len(NAMES)}] {name}", file=sys.stderr, flush=True)
        status = subprocess.run([sys.executable, "-m", f"experiments.{name}", *sys.argv[1:]], check=False).returncode
        if status:
            return status
    (RESULTS / f"REPORT-{scale}.md").write_text(report(scale))
    print(f"written: {RESULTS}/REPORT-{scale}.md; {(time.perf_counter() - start) / 60:.0f} minutes")
    return 0


def report(scale: str) -> str:
    """The pages of a scale as one text: titles one level down, links from where it lies."""
    parts = [f"# The paper's tables and figures, scale {scale}", ""]
    for name in NAMES:
        page = (RESULTS / name / scale / "README.md").read_text()
        lines = [f"#{line}" if line.startswith("#") else line for line in page.splitlines()]
        parts += [line.replace("](", f"]({name}/{scale}/") if line.startswith("![") else line for line in lines]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
