"""Every table and figure of a scale, and one report of them.

Tunes the peak rates, then trains the shared runs and makes each experiment's page in RESULTS/EXPERIMENT/SCALE, and
gathers the pages in RESULTS/REPORT.md; where nothing was there before, RESULTS/all/SCALE/records.jsonl says how long it
took. What is done is not done again. Other options go to every experiment: --scale, --parallel, --config.FIELD=VALUE.
"""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from experiments import protocol, report, training
from wsm_jax.errors import ended
from wsm_jax.io import files, machine

ONE = ("--only", "--output")  # of one experiment; the pieces of another have other names


def main() -> int:
    """Does all pieces and stops at the first that fails."""
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
    found = [importlib.import_module(f"experiments.{name}").EXPERIMENT for name in report.NAMES]
    plans = [protocol.planned(experiment, rest) for experiment in found]
    from_nothing = not any(plan.options.output.exists() for plan in plans)
    for stage in (plans[:1], plans[1:]):  # everything else trains at the rates that tuning finds
        if status := protocol.carry_out(stage):
            return status
    report.write()
    minutes = (time.perf_counter() - start) / 60
    print(f"{minutes:.0f} minutes")
    if from_nothing:
        command = " ".join(["python -m experiments.all", *sys.argv[1:]])
        took = {"minutes": round(minutes, 1), **machine.environment(), "command": command}
        folder = Path(options.results) / "all" / plans[0].options.scale
        folder.mkdir(parents=True, exist_ok=True)
        files.write_jsonl(folder / "records.jsonl", [took])
    return 0


if __name__ == "__main__":
    sys.exit(ended("all", main))
