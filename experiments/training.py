"""The training runs that the tables and figures share: a stable run for each seed, and everything branched from it.

    python -m experiments.training [--scale=small]      (all of them; an experiment trains what it lacks by itself)

Each run is at runs/training/SCALE/seedS-OPTIMIZER-lrRATE/JOB. The stable run ends at 3/4 of the steps; from its full
state the branches go on at the constant rate or along real decays, and from some of those other branches. Those with
the switch read the annealing text from there on, the others more of the same, and all of a kind read the same tokens.
The peak rate of each arm is the one that experiments/tuning.py found, so where both arms got the same rate they share
their runs. Text: experiments/corpus.py from $WSM_EXPERIMENT_DATA (default ../shared/data); without that folder a
corpus at runs/corpus/SCALE that was built elsewhere, else the standard library, and no switch.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from configs import matrix
from experiments import corpus, protocol
from experiments.jobs import ADAMW, BRANCH, JOBS, LION, MUON, OPTIMIZERS, WSD, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import command, machines
from experiments.trajectories import Trajectory, along, window
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import UsageError
from wsm_jax.io.files import read_jsonl
from wsm_jax.merging import offline
from wsm_jax.reporting.tables import markdown_table

SEEDS = (0, 1, 2)
# What the experiments on these runs have for pieces: the seeds.
SEED_SCALES = {scale: {f"seed{seed}": seed for seed in SEEDS} for scale in matrix.SIZES}
WEIGHTS = {"novels": 0.8, "peps": 0.2, "textbooks": 0.4, "mathematics": 0.2, "solutions": 0.4}
KILOBYTES = 32.0  # of each text, so that there are enough of them
MEGABYTES = {"small": 6.0, "medium": 12.0, "gpu": 36.0, "tiny": 1.0}  # of each domain


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The shared runs of a scale.

    Attributes:
      scale: a size of configs/matrix.py.
      root: folder of the runs.
      settings: further ``--config.FIELD=VALUE`` for all of them.
      optimizer: a name of OPTIMIZERS.
    """

    scale: str
    root: Path
    settings: tuple[str, ...] = ()
    optimizer: str = ADAMW

    @property
    def interval(self) -> int:
        """Steps between checkpoints."""
        return self.steps // matrix.INTERVALS

    @property
    def steps(self) -> int:
        """Where the constant run and every real decay end."""
        return matrix.SIZES[self.scale].steps

    @property
    def branch_step(self) -> int:
        """Where the stable run ends and the text changes (the paper's T_switch)."""
        return BRANCH * self.interval

    def run(self, seed: int, rate: float, job: str) -> Run:
        """The finished run, trained now if it is not; a branch waits for whoever trains its parent."""
        return _trained(self, seed, rate, job)

    def folder(self, seed: int, rate: float) -> Path:
        """Of the runs of a seed at a rate."""
        return self.root / f"seed{seed}-{self.optimizer}-lr{rate:g}"

    def merged(self, seed: int, rate: float, job: str) -> Path:
        """The checkpoint that a job with ``merged`` starts with, made now if it is not there."""
        asked = JOBS[job]
        place = self.folder(seed, rate) / f"{job}-start"
        if not orbax.is_checkpoint(place):
            path = self.path(seed, rate, asked.parent)
            recipe = window(path, "linear", asked.merged, asked.start * self.interval)
            offline.merge_checkpoints(recipe.paths, recipe.weights, place)
        return place

    def path(self, seed: int, rate: float, job: str) -> Trajectory:
        """The checkpoints of ``job`` and of all that it was branched from, one path of the parameters."""
        chain = [job]
        while parent := JOBS[chain[0]].parent:
            chain.insert(0, parent)
        return along(*(self.run(seed, rate, name) for name in chain))

    @property
    def switches(self) -> bool:
        """Whether there is annealing text to switch to."""
        return bool(self.sources().anneal)

    def sources(self) -> "Sources":
        """Where the text of both phases is, made now if it is not there."""
        place = self.root.parent.parent / "corpus" / self.scale
        if data := text_folder():
            corpus.build(data, place, MEGABYTES[self.scale], KILOBYTES)
        elif not (place / "corpus.json").is_file():  # it may have been built elsewhere and copied here
            return Sources("stdlib", "", {})
        text = [corpus.mixture(place, phase, WEIGHTS) for phase in ("stable", "anneal")]
        return Sources(*text, corpus.answers(place))


@functools.cache  # to open a finished run again reads its state
def _trained(runs: Matrix, seed: int, rate: float, job: str) -> Run:
    asked, folder = JOBS[job], runs.folder(seed, rate) / job
    parent = runs.run(seed, rate, asked.parent) if asked.parent else None
    text = runs.sources()
    settings = {
        "duration": f"{asked.end * runs.interval}steps",
        "seed": seed,
        "optimizer.peak_lr": rate * asked.rate,
        "data.source": text.stable,
    }
    if asked.batch > 1:
        settings["batch_size"] = asked.batch * matrix.SIZES[runs.scale].batch_size
    if keep := ",".join(f"{at * runs.interval}steps" for at in asked.keep):
        settings["checkpoint.branch_points"] = keep
    if asked.switch and text.anneal:
        settings |= {"data.switch_source": text.anneal, "data.switch_at": f"{runs.branch_step}steps"}
    flags = [*(f"{key}={value}" for key, value in settings.items()), *OPTIMIZERS[runs.optimizer], *asked.settings]
    with _locked(folder):
        return protocol.trained(
            folder,
            f"matrix.py:{runs.scale}",
            [*(f"--config.{flag}" for flag in flags), *runs.settings],
            branch_from=f"{parent.path}@{asked.start * runs.interval}" if parent else "",
            params_from=str(runs.merged(seed, rate, job)) if asked.merged else "",
        )


def text_folder() -> Path | None:
    """The folder of text that $WSM_EXPERIMENT_DATA names, else ../shared/data; None where it is empty or not there.

    Raises:
      UsageError: the folder that is named is not there.
    """
    asked = os.environ.get("WSM_EXPERIMENT_DATA")
    if asked is None:
        usual = Path("../shared/data")
        return usual if (usual / "text").is_dir() else None
    if asked and not Path(asked).is_dir():
        raise UsageError(f"WSM_EXPERIMENT_DATA={asked} is no folder")
    return Path(asked) if asked else None


@dataclasses.dataclass(frozen=True)
class Sources:
    """``data.source`` of the stable phase, of the annealing phase ("": none), files of answers by domain."""

    stable: str
    anneal: str
    answers: dict[str, str]


def matrix_of(folder: Path, settings: list[str]) -> Matrix:
    """The shared runs beside the folder of a piece, runs/EXPERIMENT/SCALE/PIECE."""
    scale = folder.parent.name
    if scale not in matrix.SIZES:
        raise UsageError(
            f"--output={folder.parent} must end in EXPERIMENT/SCALE, so that the shared runs are beside it"
        )
    return Matrix(scale, folder.parent.parent.parent / "training" / scale, tuple(settings))


def rates(scale: str, optimizer: str = ADAMW) -> dict[str, float]:
    """Arm -> the peak rate that experiments/tuning.py chose for it and an optimizer on validation.

    Raises:
      UsageError: it was not run.
    """
    file = protocol.results_root() / "tuning" / scale / "records.jsonl"
    records = read_jsonl(file)
    if not records:
        raise UsageError(f"{file} is not there; run python -m experiments.tuning --scale={scale}")
    return {arm: best(records, arm, optimizer)["peak_lr"] for arm in (WSM, WSD)}


def best(records: list[Record], arm: str, optimizer: str = ADAMW, rate: float | None = None) -> Record:
    """The record of tuning with the lowest validation loss of an arm and optimizer, at one rate or at any.

    Raises:
      UsageError: there is none.
    """
    chosen = [r for r in records if (r["optimizer"], r["arm"]) == (optimizer, arm) and rate in (None, r["peak_lr"])]
    if not chosen:
        raise UsageError(
            f"nothing was tuned for {arm} with {optimizer}; run python -m experiments.tuning with the same --scale, or "
            "leave these pieces out by --only"
        )
    return min(chosen, key=lambda r: r["validation"])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time trains the run in ``folder``; the others wait and find it finished."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise UsageError(f"{folder.parent} is on a file system without locks; choose another --output") from error
        yield


# --- all of them as an experiment ------------------------------------------------------------------------------------

# Arm and job of every piece, the long ones first: branches find their parents finished.
_OTHERS = [(WSM, "stable"), (WSM, "switched"), (WSD, "switched-minus_sqrt")]  # of Lion and Muon
_WSD = ("switched-minus_sqrt", "switched-linear", "decay-minus_sqrt")
_ALL = [(WSM, "stable"), (WSM, "cosine"), (WSM, "constant"), *((WSD, job) for job in _WSD)]
_ALL += [(WSM, job) for job in JOBS if (WSM, job) not in _ALL and not (job in _WSD and job.startswith("switched"))]
_PIECES = [(ADAMW, arm, job) for arm, job in _ALL]
_PIECES += [(optimizer, arm, job) for optimizer in (LION, MUON) for arm, job in _OTHERS]
SCALES = {
    scale: {f"seed{piece[0]}-{'-'.join(piece[1:])}": piece for piece in [(s, *p) for p in _PIECES for s in SEEDS]}
    for scale in matrix.SIZES
}


def measure(folder: Path, piece: tuple[int, str, str, str], settings: list[str]) -> list[Record]:
    """Trains one run."""
    seed, optimizer, arm, job = piece
    runs = dataclasses.replace(matrix_of(folder, settings), optimizer=optimizer)
    rate = rates(runs.scale, optimizer)[arm]
    run = runs.run(seed, rate, job)
    facts = {
        "optimizer": optimizer,
        "arm": arm,
        "job": job,
        "peak_lr": rate,
        "train_loss": run.metrics("train")[-1]["loss"],
    }
    return [{**facts, **protocol.provenance(run)}]


def present(records: list[Record]) -> Page:
    """What was trained, and how long it took."""
    rows = [["run", "starts with", "optimizer", "peak rate", "seed", "arm", "config", "data", "seconds"]]
    for r in records:
        cells = [r["config_hash"], r["data_hash"][:12], f"{r['piece_seconds']:.0f}"]
        rows.append([r["job"], _start(r["job"]), r["optimizer"], f"{r['peak_lr']:g}", str(r["seed"]), r["arm"], *cells])
    total = sum(r["piece_seconds"] for r in records)
    first = records[0]
    lines = [
        "# The training runs that the experiments share",
        "",
        f"{first['parameters']:,} parameters; `{command(records)}`; {machines(records)}; "
        f"{total / 60:.0f} minutes of processes, where a run was not there before.",
        "",
        *markdown_table(rows),
    ]
    return Page(lines, {})


def _start(job: str) -> str:
    asked = JOBS[job]
    if not asked.parent:
        return "nothing"
    return f"{asked.parent}, {f'mean of {asked.merged} at' if asked.merged else 'interval'} {asked.start}"


EXPERIMENT = Experiment("training", SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
