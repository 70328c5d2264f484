"""What the report of the paper's tables and figures has, and in which order.

python -m experiments.report        (writes results/outline.json, then as `wsm report results` does results/REPORT.md)
"""

import argparse
import sys
from pathlib import Path

from configs import matrix
from experiments.intervals import HOLDS
from experiments.protocol import results_root
from wsm_jax.errors import UsageError, ended
from wsm_jax.io.files import read_jsonl, write_text
from wsm_jax.reporting import pages
from wsm_jax.reporting.pages import Outline

NAMES = [
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
]


def measures(results: Path, scale: str) -> str:
    """How large the model is, and what the lengths that the pages count in are."""
    size = matrix.SIZES[scale]
    records = (read_jsonl(results / name / scale / "records.jsonl") for name in NAMES)
    parameters = next(found[0]["parameters"] for found in records if found)
    interval = size.steps // matrix.INTERVALS
    return (
        f"{parameters:,} parameters. Lengths are in intervals of {interval} steps; a step is {size.batch_size} "
        f"sequences of {size.context} tokens, a run has {matrix.INTERVALS} intervals, its real decay is the last "
        f"{matrix.DECAY}."
    )


def outline(results: Path) -> Outline:
    """Of a folder of pages, whether all of them are there or not."""
    return Outline(
        title="WSM's tables and figures, the paper's beside ours",
        introduction="The paper is arXiv 2507.17634; its figures are scores on benchmarks, higher is better, without "
        "intervals. Ours are losses in bits per byte, lower is better, first arm minus second, with 95% intervals over "
        f"seeds. {HOLDS}",
        pages=NAMES,
        scales={scale: measures(results, scale) for scale in scales(results)},
        apart=["trajectory"],  # those are of distances
    )


def scales(results: Path) -> list[str]:
    """The scales that any page is there for, from the smallest."""
    return [scale for scale in matrix.SIZES if any((results / name / scale / "README.md").is_file() for name in NAMES)]


def write() -> None:
    """Writes the outline and the report of the pages that are there."""
    results = results_root()
    if not scales(results):
        raise UsageError(f"{results} has no pages; run python -m experiments.all")
    made = outline(results)
    text = pages.report(results, made)  # first: what cannot be gathered leaves the old outline
    pages.write_outline(results, made)
    write_text(results / "REPORT.md", text)
    print(f"written: {results / 'REPORT.md'}")


def main() -> int:
    """The command."""
    argparse.ArgumentParser("python -m experiments.report", description=(__doc__ or "").split("\n")[0]).parse_args()
    write()
    return 0


if __name__ == "__main__":
    sys.exit(ended("report", main))
