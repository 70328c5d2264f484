"""Every table and figure of a scale, one after the other, and one report of them.

Tunes the peak rates, trains the shared runs, makes each experiment's page in RESULTS/EXPERIMENT/SCALE and gathers the
pages in RESULTS/REPORT.md. What is done is not done again. Other options go to every experiment: --scale, --parallel,
--config.FIELD=VALUE.
"""

import argparse
import os
import subprocess
import sys
import time

from experiments import report, training
from experiments.environment import ended

ONE = ("--only", "--output")  # of one experiment; the pieces of another have other names


def main() -> int:
    """Runs them in order and stops at the first that fails."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m experiments.all", description=__doc__, formatter_class=shape, allow_abbrev=False
    )
    parser.add_argument("--results", default="results", help="folder of all pages, and of the rates that are tuned")
    options, rest = parser.parse_known_args()
    if wrong := [text for text in rest if text.split("=")[0] in ONE]:
        parser.error(f"{wrong[0].split('=')[0]} goes with one experiment: python -m experiments.NAME")
    os.environ["WSM_EXPERIMENT_RESULTS"] = options.results
    text = training.text_folder()
    print(f"text: {text or 'a corpus that was built before, else the standard library, where nothing is switched'}")
    print(f"pages: {options.results} (those of the same names are replaced)", flush=True)
    start = time.perf_counter()
    for number, name in enumerate(report.NAMES, 1):
        print(f"\n[{number}/{len(report.NAMES)}] {name}", file=sys.stderr, flush=True)
        status = subprocess.run([sys.executable, "-m", f"experiments.{name}", *rest], check=False).returncode
        if status:
            return status
    report.write()
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(ended("all", main))
