"""The experiments as a user starts them, made short: records, pages, figures, what is skipped and what is refused."""

import collections
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import all as everything
from experiments import cost, interval_means, intervals, jobs, lawa, merge_granularity, protocol, report
from experiments.seeds import Seeds
from wsm_jax import Run
from wsm_jax.checkpoints import orbax
from wsm_jax.cli import config_flags
from wsm_jax.config import Config, flat_fields
from wsm_jax.errors import UsageError, ended
from wsm_jax.evaluation.evaluate import run_evaluator
from wsm_jax.io import files

pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("experiments"),
]  # one short run of each serves the whole file
ROOT = Path(__file__).parent.parent


def start(module, *arguments):
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_short(module, only, folder, settings):
    arguments = [f"--only={only}", "--parallel=1", f"--output={folder}/runs", f"--results={folder}/results"]
    arguments += [*settings, "--config.duration=80steps", "--config.evaluation.batch_size=128"]
    done = start(module, *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return done, arguments


@pytest.fixture(scope="module")
def lawa_run(store, short_demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lawa")
    return folder, *run_short("lawa", "0.006-seed1", folder, [*short_demo, "--config.schedule.warmup=6steps"])


@pytest.fixture(scope="module")
def means_run(store, short_demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interval_means")
    return folder, *run_short("interval_means", "0.4M-seed0", folder, short_demo)


def records(folder):
    return [json.loads(line) for line in (folder / "results" / "records.jsonl").read_text().splitlines()]


def test_lawa_is_the_mean_of_the_five_latest_and_its_loss_is_in_the_records(lawa_run):
    folder = lawa_run[0]
    run = Run(folder / "runs" / "0.006-seed1" / "run")
    assert (run.config.seed, run.config.optimizer.peak_lr, run.config.schedule.name) == (1, 6e-3, "cosine")
    steps = [40 - 4 * i for i in range(5)]
    trees = [orbax.load_tree(run.merge_stream / str(step)) for step in steps]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)
    test = run_evaluator(run, "test", limit_tokens=lawa.Piece.test_tokens)
    row = next(r for r in records(folder) if (r["step"], r["arm"]) == (40, lawa.lawa(4)))
    assert row["test"] == pytest.approx(test(mean).loss, rel=1e-6)
    ema = orbax.load_tree(run.merge_stream / "40", "ema")
    row = next(r for r in records(folder) if (r["step"], r["arm"]) == (40, lawa.EMA))
    assert row["test"] == pytest.approx(test(ema).loss, rel=1e-6)


def test_lawa_and_swa_do_not_reach_into_the_warm_up(lawa_run):
    found = {(r["step"], r["arm"]) for r in records(lawa_run[0])}
    assert (20, lawa.lawa(2)) in found
    assert (20, lawa.lawa(4)) not in found  # its oldest checkpoint is at step 4 of a warm-up of 6
    assert (40, lawa.lawa(4)) in found
    assert (20, lawa.SWA) in found


def test_records_and_page_say_where_they_come_from(lawa_run):
    folder, _, arguments = lawa_run
    rows = records(folder)
    config = Run(folder / "runs" / "0.006-seed1" / "run").facts
    for row in rows:
        assert row["config_hash"] == config["config_hash"] and row["data_hash"] == config["data_hash"]
        assert row["command"].startswith("python -m experiments.lawa") and arguments[0] in row["command"]
        assert row["versions"]["jax"] and row["machine"] and row["seed"] == 1
    page = (folder / "results" / "README.md").read_text()
    assert "it is better than EMA 0.9" in page and f"{rows[0]['parameters']:,} parameters" in page
    for suffix in (".png", ".svg"):
        assert (folder / "results" / f"gains{suffix}").stat().st_size > 10_000


def test_what_is_done_is_not_done_again(lawa_run):
    folder, _, arguments = lawa_run
    before = (folder / "runs" / "0.006-seed1" / "records.jsonl").stat().st_mtime_ns
    again = start("lawa", *arguments)
    assert again.returncode == 0 and "0 pieces to do" in again.stdout
    assert (folder / "runs" / "0.006-seed1" / "records.jsonl").stat().st_mtime_ns == before


def test_every_merge_of_points_and_means_is_measured_beside_the_decays(means_run):
    rows = records(means_run[0])
    keys = {(r["arm"], r["curve"], r["count"], r["weight_decay_aware"]) for r in rows}
    kinds = len(interval_means.SNAPSHOTS) * (len(interval_means.CURVES) + 1)
    assert len(keys) == len(rows) == 1 + kinds * len(interval_means.COUNTS) + len(interval_means.CURVES)
    for curve in interval_means.CURVES:
        decay = Run(means_run[0] / "runs" / "0.4M-seed0" / f"decay-{curve}")
        assert decay.facts["branch_step"] == 60 and decay.config.schedule.curve == curve
        assert (interval_means.REAL, curve, interval_means.DECAY, False) in keys
    assert (means_run[0] / "results" / "windows.png").stat().st_size > 10_000


def test_a_merge_of_means_comes_out_again(means_run):
    run = Run(means_run[0] / "runs" / "0.4M-seed0" / "constant")
    trees = [orbax.load_tree(run.merge_stream / str(step), "mean") for step in range(77, 81)]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)
    row = next(
        r
        for r in records(means_run[0])
        if (r["arm"], r["curve"], r["count"], r["weight_decay_aware"]) == ("mean", "linear", 4, False)
    )
    assert row["test"] == pytest.approx(
        run_evaluator(run, "test", limit_tokens=interval_means.TEST_TOKENS)(mean).loss, rel=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only=nothing"], "nothing"),
        (["--parallel=0"], "--parallel=0"),
        (["--sedes=1"], "--sedes=1"),
        (["--scale=huge"], "huge"),
        (["--config.seed=5"], "--config.seed is set by the experiment itself"),
        (["--config.optimizer.peak_lr=1e-3"], "--config.optimizer.peak_lr is set by the experiment itself"),
        (["--output=runs/lawa/gpt2_small"], "folder of another scale than --scale=small"),
    ],
)
def test_bad_arguments_end_with_one_error(arguments, named, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lawa", *arguments])
    with pytest.raises(SystemExit) as error:
        protocol.main(lawa.EXPERIMENT)
    assert error.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_a_field_that_is_misspelt_is_named_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lawa", "--config.optimizer.naem=lion", f"--output={tmp_path}/runs"])
    assert protocol.main(lawa.EXPERIMENT) == 2
    assert "did you mean --config.optimizer.name?" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", jobs.FIXED)
def test_what_jobs_set_is_a_field_of_the_configuration(field):
    assert field in flat_fields(Config())


def test_a_piece_that_is_asked_for_twice_is_done_once(tmp_path):
    places = [f"--output={tmp_path}/runs", f"--results={tmp_path}/results"]
    assert protocol.planned(lawa.EXPERIMENT, ["--only=0.006-seed0,0.006-seed0", *places]).todo == ["0.006-seed0"]


def test_a_comma_too_many_is_no_piece_more(tmp_path, monkeypatch, capsys):
    places = [f"--output={tmp_path}/runs", f"--results={tmp_path}/results"]
    monkeypatch.setattr(sys, "argv", ["lawa", "--only=0.006-seed0,", "--config.optimizer.name=adamx", *places])
    assert protocol.main(lawa.EXPERIMENT) == 2
    assert "lawa: 1 pieces to do" in capsys.readouterr().out


def planned_with_all_pieces_done(experiment, folder):
    """Its pieces are those of the committed records."""
    output, pieces = folder / "runs" / experiment.name / "small", collections.defaultdict(list)
    for row in files.read_jsonl(ROOT / "results" / experiment.name / "small" / "records.jsonl"):
        pieces[row["piece"]].append(row)
    for piece, rows in pieces.items():
        (output / piece).mkdir(parents=True)
        files.write_jsonl(output / piece / "records.jsonl", rows)
    places = [f"--output={output}", f"--results={folder}/results/{experiment.name}"]
    return protocol.planned(experiment, ["--scale=small", "--parallel=1", *places])


def test_pages_that_are_ready_are_written_and_after_a_failure_nothing_is_started(tmp_path, capsys):
    before, after = (planned_with_all_pieces_done(m.EXPERIMENT, tmp_path) for m in (cost, merge_granularity))
    places = [f"--output={tmp_path}/lawa", f"--results={tmp_path}/results/lawa"]
    fails = protocol.planned(lawa.EXPERIMENT, ["--config.optimizer.name=adamx", *places])
    assert before.todo == after.todo == [] and len(fails.todo) > 2
    assert protocol.carry_out([before, fails, after]) == 2
    page = Path("cost") / "small" / "README.md"
    assert (before.options.results / "README.md").read_text() == (ROOT / "results" / page).read_text()
    assert not after.options.results.exists()
    assert [folder.name for folder in (tmp_path / "lawa").iterdir()] == fails.todo[:1]
    error = capsys.readouterr().err
    assert f"lawa {fails.todo[0]} ended with 2:" in error and "adamx" in error


def test_all_refuses_pieces_of_other_settings_before_it_does_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WSM_EXPERIMENT_DATA", raising=False)
    monkeypatch.setenv("WSM_EXPERIMENT_RESULTS", "")  # it is set there
    piece = Path("runs") / "cost" / "tiny" / "seed0"
    piece.mkdir(parents=True)
    files.write_jsonl(piece / "records.jsonl", [{"piece": "seed0"}])
    monkeypatch.setattr(sys, "argv", ["all", "--scale=tiny", "--config.optimizer.b2=0.9", "--results=pages"])
    assert ended("all", everything.main) == 2
    assert f"all: {piece} was done with no --config.FIELD=VALUE" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"] and len(list(tmp_path.rglob("*"))) == 5


def test_a_command_that_cannot_go_on_ends_in_one_line(tmp_path, monkeypatch, capsys):
    assert ended("name", lambda: 3) == 3
    monkeypatch.setenv("WSM_EXPERIMENT_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["report"])
    assert ended("report", report.main) == 2
    assert capsys.readouterr().err == f"report: {tmp_path} has no pages; run python -m experiments.all\n"
    assert not list(tmp_path.iterdir())


def test_arms_of_other_seeds_are_not_paired():
    rows = [
        {"arm": arm, "seed": seed, "test": 1.0} for arm, seeds in {"a": (0, 1), "b": (1, 2)}.items() for seed in seeds
    ]
    with pytest.raises(UsageError, match=r"\('a',\) has the seeds \[0, 1\], others have \[0, 1, 2\]"):
        Seeds(rows, "arm")
    assert Seeds([row for row in rows if row["seed"] == 1], "arm").minus(("a",), ("b",)) == [0.0]


def test_seeds_that_were_measured_on_different_text_are_not_averaged():
    rows = [{"arm": "a", "seed": seed, "test": 1.0, "data_hash": f"text {seed}"} for seed in (0, 1)]
    with pytest.raises(UsageError, match=r"\('a',\) was measured on different text"):
        Seeds(rows, "arm")


def test_shares_of_a_gain_are_by_seed_and_there_are_none_where_it_is_none():
    assert intervals.share([-1.0, -1.0, -1.0], [-2.0, -2.0, -2.0]) == "50% ± 0%"
    mean, half = intervals.interval([0.5, 0.25])
    assert intervals.share([-1.0, -1.0], [-2.0, -4.0]) == f"{mean:.0%} ± {half:.0%}"
    assert intervals.share([1.0, 1.2], [-1.0, 1.0]) == "–"  # the decay does harm


def test_a_piece_that_fails_stops_the_experiment_and_says_why(store, tmp_path):
    done = start("lawa", "--only=0.006-seed0", f"--output={tmp_path}/runs", "--config.optimizer.name=adamx")
    assert done.returncode == 2
    assert "adamx" in done.stderr
    assert not (tmp_path / "runs" / "0.006-seed0" / "records.jsonl").exists()


def test_intervals_over_seeds():
    mean, half = intervals.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652729749 / math.sqrt(3), rel=1e-9)  # t of 2 degrees of freedom
    assert intervals.interval([1.0]) == (1.0, math.inf)
    assert intervals.verdict([-1.0, -1.1, -0.9]) == "holds"
    assert intervals.verdict([1.0, 1.1, 0.9]) == "does not hold"
    assert intervals.verdict([-1.0, 1.1, 0.1]) == intervals.verdict([-1.0]) == "undecided"


def test_the_spacing_is_chosen_on_validation():
    def row(arm, validation, minus_raw):
        return {"peak_lr": 1.0, "share": 0.5, "seed": 0, "arm": arm, "validation": validation, "minus_raw": minus_raw}

    table = lawa.Table([row(lawa.lawa(1), 2.0, -0.5), row(lawa.lawa(2), 1.0, -0.1), row(lawa.RAW, 0.5, 0.0)])
    assert table.chosen(1.0, 0.5) == lawa.lawa(2)  # though the other is better on test


def test_a_share_of_the_run_without_an_average_after_the_warm_up_is_left_out():
    rows = files.read_jsonl(ROOT / "results" / "lawa" / "small" / "records.jsonl")
    early = [row for row in rows if row["share"] > 0.25 or not row["arm"].startswith("LAWA")]
    assert lawa.Table(early).shares == [0.5, 0.75, 1.0]
    page = lawa.present(early)
    assert {row[2] for row in lawa.claims(lawa.Table(early))[1:]} == {"0.5"} and set(page.figures) == {"gains"}


def test_all_scales_have_three_seeds_and_configurations_that_load():
    for experiment in (lawa.EXPERIMENT, interval_means.EXPERIMENT):
        for pieces in experiment.scales.values():
            assert {piece.seed for piece in pieces.values()} == {0, 1, 2}
            for piece in pieces.values():
                name = getattr(piece, "config", "demo.py")
                config_flags.load([f"--config={protocol.CONFIGS / name}", *piece.settings])
