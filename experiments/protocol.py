"""What the experiments share: pieces that run side by side and are skipped once done, merges from one pass, records.

An experiment is a table of pieces for each scale, a function that does one piece (trains, merges, evaluates) and gives
its records, and one that makes a page of all records:

    python -m experiments.NAME [--scale=small] [--parallel=2] [--config.FIELD=VALUE ...]

Every piece is a process of its own on its share of the cores and leaves runs/NAME/SCALE/PIECE/records.jsonl, whole or
not at all; what is there is not done again, and a training run that was cut goes on where it stopped. The page, its
figures and all records go to results/NAME/SCALE. Curves, windows and
spacings are chosen on validation; what is reported is of test.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.figure import Figure

from experiments.environment import compile_once, tuned
from experiments.jobs import FIXED
from experiments.processes import Processes, terminable
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.cli import config_flags
from wsm_jax.config import parse_list
from wsm_jax.errors import UsageError, ended
from wsm_jax.evaluation import evaluate
from wsm_jax.evaluation.evaluate import Evaluation, Evaluator
from wsm_jax.io import files, machine, memory
from wsm_jax.merging import offline
from wsm_jax.merging.recipe import of_steps
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.reporting import plot_style
from wsm_jax.training.loop import train

Record = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)
PARALLEL = "pieces at a time (default: 2); on an accelerator they share its memory"
CONFIGS = Path(__file__).parent.parent / "configs"


class Page(NamedTuple):
    """What an experiment says: lines of Markdown, and name -> figure."""

    lines: list[str]
    figures: dict[str, Figure]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
      name: of its module and folders.
      scales: scale -> piece -> what ``measure`` is told; the name of a piece is that of its folder.
      measure: (folder of the piece, what it is told, further settings ``--config.FIELD=VALUE``) -> records.
      present: records of all pieces -> page.
      fixed: fields of the configuration that it sets itself.
    """

    name: str
    scales: Mapping[str, Mapping[str, Any]]
    measure: Callable[[Path, Any, list[str]], list[Record]]
    present: Callable[[list[Record]], Page]
    fixed: tuple[str, ...] = FIXED


def trained(folder: Path, config: str, settings: Sequence[str], *, branch_from: str = "", params_from: str = "") -> Run:
    """The finished run in ``folder``, trained as far as it is not.

    Args:
      folder: of the run.
      config: name of a file under configs/.
      settings: ``--config.FIELD=VALUE``, the later of two counts.
      branch_from: ``RUN@STEP``.
      params_from: a checkpoint whose parameters it starts with.
    """
    loaded = config_flags.load([f"--config={CONFIGS / config}", *settings])
    return train(loaded, folder, branch_from=branch_from, params_from=params_from, quiet=True)


def evaluated(
    recipes: Mapping[Key, MergeSpec], evaluators: Mapping[str, Evaluator]
) -> dict[Key, dict[str, Evaluation]]:
    """What each recipe's merge gives on every split; all merges come from one pass over what they read."""
    keys = {f"{number}": key for number, key in enumerate(recipes)}
    # A piece beside others has its share of the memory as it has of the cores.
    share = len(os.sched_getaffinity(0)) / (os.cpu_count() or 1)
    specs = {number: recipes[key] for number, key in keys.items()}
    merges = offline.in_memory(specs, room=int(offline.ROOM * share * memory.free()))
    return {
        keys[name]: {split: evaluator(params) for split, evaluator in evaluators.items()} for name, params in merges
    }


def single(path: Path, item: str = PARAMS) -> MergeSpec:
    """One checkpoint as it is."""
    return of_steps((path,), (item,), np.ones(1))


def evaluators(base: Run, *, validation_tokens: int, test_tokens: int) -> dict[str, Evaluator]:
    """Split -> params -> Evaluation, on the first so many tokens of each split of the run's data (0 = all)."""
    limits = {"validation": validation_tokens, "test": test_tokens}
    return {split: evaluate.run_evaluator(base, split, limit_tokens=limit) for split, limit in limits.items()}


def compared(evaluations: Mapping[str, Evaluation], raw: Mapping[str, Evaluation]) -> Record:
    """Losses in nats a token on both splits, and on test the difference to ``raw``, paired by document."""
    difference = evaluate.paired_difference(evaluations["test"], raw["test"])
    return {
        **{split: evaluation.loss for split, evaluation in evaluations.items()},
        "bits_per_byte": evaluations["test"].bits_per_byte,
        "minus_raw": difference.loss,
        "minus_raw_stderr": difference.stderr,
    }


def provenance(base: Run) -> Record:
    """What the records of a run depend on besides the code."""
    names = ("config_hash", "data_hash", "parameters")
    environment = machine.environment()
    environment["command"] = os.environ.get("WSM_EXPERIMENT_COMMAND", environment["command"])
    facts = {**{name: base.facts[name] for name in names}, "config_id": base.config_id}
    return {"seed": base.config.seed, **facts, **environment}


def trained_by(recipe: MergeSpec) -> Record:
    """Hashes of the configuration and the data of the run that saved a recipe's newest checkpoint."""
    run = Run(Path(recipe.paths[-1]).parents[2])  # RUN/checkpoints/STREAM/STEP
    return {**{name: run.facts[name] for name in ("config_hash", "data_hash")}, "config_id": run.config_id}


def main(experiment: Experiment) -> int:
    """Does the pieces that are not done and writes the page; returns the exit status."""
    return ended(experiment.name, lambda: _main(experiment))


def _main(experiment: Experiment) -> int:
    options, settings = _parse(experiment, sys.argv[1:])
    if not options.piece:
        return carry_out([planned(experiment, sys.argv[1:])])
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    compile_once(options.output / "compiled")
    piece = experiment.scales[options.scale][options.piece]
    return _do(experiment, options.output / options.piece, options.piece, piece, settings)


class Plan(NamedTuple):
    """What one experiment was asked for, and which of its pieces are not done."""

    experiment: Experiment
    options: argparse.Namespace
    settings: list[str]
    command: str
    chosen: list[str]
    todo: list[str]

    @property
    def name(self) -> str:
        """Of the experiment."""
        return self.experiment.name


def planned(experiment: Experiment, arguments: list[str]) -> Plan:
    """What a command's ``arguments`` ask of an experiment.

    Raises:
      UsageError: a piece was done with other settings.
      SystemExit: wrong arguments.
    """
    options, settings = _parse(experiment, arguments)
    chosen = list(dict.fromkeys(parse_list(options.only))) or list(experiment.scales[options.scale])
    done = [name for name in chosen if (options.output / name / "records.jsonl").is_file()]
    if other := [name for name in done if _settings(options.output / name) != settings]:
        had = " ".join(_settings(options.output / other[0])) or "no --config.FIELD=VALUE"
        raise UsageError(
            f"{options.output / other[0]} was done with {had}; give the same, remove that folder or choose another "
            "--output"
        )
    command = " ".join([f"python -m experiments.{experiment.name}", *arguments])
    return Plan(experiment, options, settings, command, chosen, [name for name in chosen if name not in done])


def carry_out(plans: Sequence[Plan]) -> int:
    """Does what is to do from one queue, so that no core waits for the last piece of an experiment; writes each page.

    Args:
      plans: in the order in which they are done; what one needs of another it makes itself.

    Returns:
      The exit status, that of the first piece that fails; the others that are being done end first.

    Raises:
      KeyboardInterrupt, SystemExit: a SIGINT or SIGTERM, which is passed on to the pieces: they save where they are.
    """
    work = [(each, name) for each in plans for name in each.todo]
    parallel = min(plans[0].options.parallel, len(os.sched_getaffinity(0)))
    print(f"{', '.join(each.name for each in plans)}: {len(work)} pieces to do, {parallel} at a time", flush=True)
    start, done, processes = time.perf_counter(), 0, Processes(parallel)
    with terminable(), ThreadPoolExecutor(parallel) as pool:
        try:
            statuses = (_waited(each) for each in [pool.submit(_run, *piece, processes) for piece in work])
            for each in plans:
                for name in each.todo:
                    if status := next(statuses):
                        return status
                    done += 1
                    took = (time.perf_counter() - start) / 60
                    left = took / done * (len(work) - done)
                    count = f"[{done}/{len(work)}] {each.name} {name}"
                    print(f"{count}; {took:.1f} minutes so far, about {left:.1f} to go", flush=True)
                _finish(each)
        except (KeyboardInterrupt, SystemExit):
            processes.stop()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return 0


def _waited(future: Future[int]) -> int:
    while not future.done():
        wait([future], timeout=1.0)  # Python handles a signal that another thread took when this one wakes
    return future.result()


def _run(plan: Plan, name: str, processes: Processes) -> int:
    """Does one piece in a process of its own; its exit status."""
    asked = [f"--scale={plan.options.scale}", f"--output={plan.options.output}", f"--piece={name}", *plan.settings]
    command = [sys.executable, "-m", f"experiments.{plan.name}", *asked]
    environment = {**tuned(), **os.environ, "WSM_EXPERIMENT_COMMAND": plan.command}
    return processes.run(f"{plan.name} {name}", command, plan.options.output / name, environment)


def _finish(plan: Plan) -> None:
    """Writes the page of all that was chosen."""
    places = [plan.options.output / name / "records.jsonl" for name in plan.chosen]
    records = [record for file in places for record in files.read_jsonl(file)]
    publish(plan.experiment.present(records), records, plan.options.results)
    print(f"written: {plan.options.results}/README.md, records.jsonl and figures", flush=True)


def _parse(experiment: Experiment, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{experiment.name}",
        allow_abbrev=False,
        epilog="--config.FIELD=VALUE changes a setting of all training runs (wsm train --help lists them).",
    )
    scales = list(experiment.scales)
    parser.add_argument("--scale", default=scales[0], choices=scales, help=f"default: {scales[0]}")
    parser.add_argument("--output", type=Path, help=f"folder of the runs (default: runs/{experiment.name}/SCALE)")
    parser.add_argument("--results", type=Path, help=f"folder of the page (default: results/{experiment.name}/SCALE)")
    parser.add_argument("--parallel", type=int, default=2, help=PARALLEL)
    parser.add_argument("--only", default="", help="comma-separated pieces; default: all of the scale")
    parser.add_argument("--piece", default="", help=argparse.SUPPRESS)
    parser.add_argument("--cores", default="", help=argparse.SUPPRESS)
    options, settings = parser.parse_known_args(arguments)
    if wrong := [text for text in settings if not text.startswith("--config.")]:
        parser.error(f"unknown argument {wrong[0]!r}; a setting is written --config.FIELD=VALUE")
    config_flags.check_fields(settings)
    if own := [text for text in settings if text.split("=")[0].removeprefix("--config.") in experiment.fixed]:
        parser.error(f"{own[0].split('=')[0]} is set by the experiment itself")
    pieces = experiment.scales[options.scale]
    if unknown := [name for name in parse_list(options.only) if name not in pieces]:
        parser.error(f"unknown piece {unknown[0]!r}; known: {', '.join(pieces)}")
    if options.output and options.output.name in scales and options.output.name != options.scale:
        parser.error(f"--output={options.output} is the folder of another scale than --scale={options.scale}")
    if options.parallel < 1:
        parser.error(f"--parallel={options.parallel} must be at least 1")
    options.output = options.output or Path("runs") / experiment.name / options.scale
    options.results = options.results or results_root() / experiment.name / options.scale
    return options, settings


def results_root() -> Path:
    """Folder of all pages, from which the rates that tuning found are read too."""
    return Path(os.environ.get("WSM_EXPERIMENT_RESULTS", "results"))


def _do(experiment: Experiment, folder: Path, piece: str, told: Any, settings: list[str]) -> int:
    """One piece, in this process."""
    clock = time.perf_counter()
    records = experiment.measure(folder, told, settings)
    seconds = round(time.perf_counter() - clock, 1)
    whole = [{"piece": piece, **record, "piece_seconds": seconds} for record in records]
    files.write_text(folder / "settings.json", json.dumps(settings))
    files.write_jsonl(folder / "records.jsonl", whole)
    return 0


def _settings(folder: Path) -> list[str]:
    """The settings that a finished piece was done with."""
    file = folder / "settings.json"
    return files.read_json(file) if file.is_file() else []


def publish(page: Page, records: list[Record], folder: Path) -> None:
    """Writes a page, its records and its figures as PNG and SVG, and prints the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in page.figures.items():
        plot_style.save(figure, folder / name)
    files.write_jsonl(folder / "records.jsonl", records)
    files.write_text(folder / "README.md", "\n".join(page.lines) + "\n")
    print("\n".join(page.lines))
