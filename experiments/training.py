"""The training runs that the tables and figures share: a stable run for each seed, and everything branched from it.

    python -m experiments.training [--scale=small]      (all of them; an experiment trains what it lacks by itself)

Each run is at runs/training/SCALE/seedS-lrRATE/JOB. The stable run ends at 3/4 of the steps; from its full state the
branches go on at the constant rate or along real decays. Those with the switch read the annealing text from there on,
the others more of the same, and all of a kind read the same tokens. The peak rate of each arm is the one that
experiments/tuning.py found, so where both arms got the same rate they share their runs. Text: experiments/corpus.py
from $WSM_EXPERIMENT_DATA (default ../shared/data); without that folder the standard library, and no switch.
"""

import contextlib
import dataclasses
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from configs import matrix
from experiments import corpus, protocol
from experiments.protocol import Experiment, Page, Record
from experiments.trajectories import Trajectory, along
from wsm_jax.errors import UsageError
from wsm_jax.report import markdown_table
from wsm_jax.run import Run, read_jsonl

WSM, WSD = "wsm", "wsd"
CURVES = ("linear", "cosine", "minus_sqrt")
SEEDS = (0, 1, 2)
# What the experiments on these runs have for pieces: the seeds.
SEED_SCALES = {scale: {f"seed{seed}": seed for seed in SEEDS} for scale in matrix.SIZES}
EXTRA = 4  # intervals that the switched run goes on after the real decay's end, as the paper's (500B against 400B)
WEIGHTS = {"novels": 0.8, "peps": 0.2, "textbooks": 0.4, "mathematics": 0.2, "solutions": 0.4}
MEGABYTES = {"small": 6.0, "medium": 40.0, "tiny": 1.0}
RESULTS = Path("results")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: its settings, whether it starts from the stable run, and reads the annealing text from there on."""

    settings: tuple[str, ...] = ()
    branch: bool = False
    switch: bool = False


def _decay(curve: str, *, switch: bool) -> Job:
    settings = ("schedule.name=cooldown", f"schedule.curve={curve}", "checkpoint.snapshot=point")
    return Job(settings, branch=True, switch=switch)


JOBS = {
    "stable": Job(),
    "constant": Job(branch=True),
    "switched": Job(branch=True, switch=True),
    "switched-minus_sqrt": _decay("minus_sqrt", switch=True),  # the paper's
    **{f"decay-{curve}": _decay(curve, switch=False) for curve in CURVES},
    "cosine": Job(("schedule.name=cosine", "checkpoint.snapshot=point")),
}


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The shared runs of a scale.

    Attributes:
      scale: a size of configs/matrix.py.
      root: folder of the runs.
      settings: further ``--config.FIELD=VALUE`` for all of them.
    """

    scale: str
    root: Path
    settings: tuple[str, ...] = ()

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
        """Where branches start and the text changes (the paper's T_switch)."""
        return self.steps - matrix.DECAY * self.interval

    def run(self, seed: int, rate: float, job: str) -> Run:
        """The finished run, trained now if it is not; a branch waits for whoever trains its stable run."""
        asked = JOBS[job]
        folder = self.root / f"seed{seed}-lr{rate:g}" / job
        parent = self.run(seed, rate, "stable") if asked.branch else None
        end = {"stable": self.branch_step, "switched": self.steps + EXTRA * self.interval}.get(job, self.steps)
        text = self.sources()
        settings = {
            "duration": f"{end}steps",
            "seed": seed,
            "optimizer.peak_lr": rate,
            "data.source": text.stable,
        }
        if asked.switch and text.anneal:
            settings |= {"data.switch_source": text.anneal, "data.switch_at": f"{self.branch_step}steps"}
        flags = [*(f"{key}={value}" for key, value in settings.items()), *asked.settings]
        with _locked(folder):
            return protocol.trained(
                folder,
                f"matrix.py:{self.scale}",
                [*(f"--config.{flag}" for flag in flags), *self.settings],
                branch_from=f"{parent.path}@{self.branch_step}" if parent else "",
            )

    def path(self, seed: int, rate: float, job: str) -> Trajectory:
        """The checkpoints of the stable run and of its branch ``job``, one path of the parameters."""
        return along(self.run(seed, rate, "stable"), self.run(seed, rate, job))

    @property
    def switches(self) -> bool:
        """Whether there is annealing text to switch to."""
        return bool(self.sources().anneal)

    def sources(self) -> "Sources":
        """Where the text of both phases is, made now if it is not there."""
        asked = os.environ.get("WSM_EXPERIMENT_DATA")
        data = Path(asked or "../shared/data")
        if not data.is_dir():
            if asked:
                raise UsageError(f"WSM_EXPERIMENT_DATA={asked} is no folder")
            return Sources("stdlib", "", "")
        place = corpus.build(data, self.root.parent.parent / "corpus" / self.scale, MEGABYTES[self.scale])
        return Sources(*(corpus.mixture(place, phase, WEIGHTS) for phase in corpus.PHASES))


@dataclasses.dataclass(frozen=True)
class Sources:
    """``data.source`` of the stable phase, of the annealing phase ("": none), of what is only evaluated ("": none)."""

    stable: str
    anneal: str
    evaluation: str


def matrix_of(folder: Path, settings: list[str]) -> Matrix:
    """The shared runs beside the folder of a piece, runs/EXPERIMENT/SCALE/PIECE."""
    scale = folder.parent.name
    if scale not in matrix.SIZES:
        raise UsageError(
            f"--output={folder.parent} must end in EXPERIMENT/SCALE, so that the shared runs are beside it"
        )
    return Matrix(scale, folder.parent.parent.parent / "training" / scale, tuple(settings))


def rates(scale: str) -> dict[str, float]:
    """Arm -> the peak rate that experiments/tuning.py chose for it on validation.

    Raises:
      UsageError: it was not run.
    """
    file = RESULTS / "tuning" / scale / "records.jsonl"
    records = read_jsonl(file)
    if not records:
        raise UsageError(f"{file} is not there; run python -m experiments.tuning --scale={scale}")
    return {arm: best(records, arm)["peak_lr"] for arm in (WSM, WSD)}


def best(records: list[Record], arm: str, rate: float | None = None) -> Record:
    """The record of tuning with the lowest validation loss of an arm, at one rate or at any."""
    return min((r for r in records if r["arm"] == arm and rate in (None, r["peak_lr"])), key=lambda r: r["validation"])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time trains the run in ``folder``; the others wait and find it finished."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- all of them as an experiment ------------------------------------------------------------------------------------

# Arm and job of every piece, the long ones first: branches find their stable run finished.
_ALL = [(WSM, "stable"), (WSM, "cosine"), (WSD, "switched-minus_sqrt"), (WSD, "decay-minus_sqrt")]
_ALL += [(WSM, job) for job in JOBS if (WSM, job) not in _ALL and job != "switched-minus_sqrt"]
SCALES = {
    scale: {f"seed{seed}-{arm}-{job}": (seed, arm, job) for arm, job in _ALL for seed in SEEDS}
    for scale in matrix.SIZES
}


def measure(folder: Path, piece: tuple[int, str, str], settings: list[str]) -> list[Record]:
    """Trains one run."""
    seed, arm, job = piece
    runs = matrix_of(folder, settings)
    run = runs.run(seed, rates(runs.scale)[arm], job)
    last = run.metrics("train")[-1]
    return [{"arm": arm, "job": job, "train_loss": last["loss"], **protocol.provenance(run)}]


def present(records: list[Record]) -> Page:
    """What was trained, and how long it took."""
    rows = [["run", "seed", "arm", "config", "data", "seconds"]]
    for r in records:
        rows.append(
            [r["job"], str(r["seed"]), r["arm"], r["config_hash"], r["data_hash"][:12], f"{r['piece_seconds']:.0f}"]
        )
    total = sum(r["piece_seconds"] for r in records)
    first = records[0]
    lines = [
        "# The training runs that the experiments share",
        "",
        f"{first['parameters']:,} parameters; `{first['command']}`; {first['machine']}, Python {first['python']}, "
        f"jax {first['versions']['jax']}; {total / 60:.0f} minutes of processes, where a run was not there before.",
        "",
        *markdown_table(rows),
    ]
    return Page(lines, {})


EXPERIMENT = Experiment("training", SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
