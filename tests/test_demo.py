"""The demo's runs and report, made short: what is in the table, what was written, what resumes, what is refused."""

import csv
import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.disks import FULL, fill
from wsm_jax import DECAYS, Run, UsageError, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.config import with_fields
from wsm_jax.evaluation import tuning
from wsm_jax.evaluation.evaluate import Difference, checkpoint_path, paired_difference, run_evaluator
from wsm_jax.reporting import comparison, report

pytest_plugins = ["tests.disks"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("demo")]
ROOT = Path(__file__).parent.parent


def wsm(*arguments, **options):
    command = [sys.executable, "-m", "wsm_jax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def result(demo_run):
    return json.loads((demo_run / "report" / "table.json").read_text())


@pytest.fixture(scope="module")
def linear(demo_run, store):
    """The constant run beside its linear decay."""
    return comparison.compare(Run(demo_run / "constant"), [Run(demo_run / "decay-linear")])


def test_the_table_has_a_row_for_everything(demo_run, result):
    groups = [row["group"] for row in result["rows"]]
    assert groups == ["raw"] + ["merge"] * len(DECAYS) + ["chosen"] + ["decay"] * 3
    printed = (demo_run / "stdout.txt").read_text()
    for row in result["rows"]:
        assert f"{row['test']['loss']:.4f}" in printed
    with (demo_run / "report" / "table.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + len(groups)


def test_the_figures_of_a_row_come_out_again(demo_run, result):
    run = Run(demo_run / "constant")
    test = run_evaluator(run, "test")
    raw = test(orbax.load_tree(checkpoint_path(run)))
    steps = [str(s) for s in orbax.complete_steps(run.merge_stream)[-10:]]
    merged = test(merge_checkpoints([run.merge_stream / s for s in steps], merge_weights("cosine", 10)))
    row = next(r for r in result["rows"] if r["name"] == "merge cosine")
    assert row["window"] == 10
    assert row["test"]["loss"] == pytest.approx(merged.loss, rel=1e-6)
    assert row["difference"] == pytest.approx(paired_difference(merged, raw).loss, rel=1e-4)


def test_curve_and_window_are_chosen_on_validation(result):
    candidates = {
        (curve, window): loss for curve, values in result["validation_windows"].items() for window, loss in values
    }
    best = min(candidates, key=lambda key: candidates[key])
    chosen = next(row for row in result["rows"] if row["group"] == "chosen")
    assert (result["chosen"]["curve"], chosen["window"]) == best
    assert len({window for _, window in candidates}) >= 5


def test_decays_read_the_tokens_of_the_constant_run_and_end_near_zero(demo_run):
    base = Run(demo_run / "constant")
    for curve in ("linear", "cosine", "minus_sqrt"):
        run = Run(demo_run / f"decay-{curve}")
        assert run.facts["branch_step"] == 30
        assert run.facts["data_hash"] == base.facts["data_hash"]
        last = run.metrics("train")[-1]
        assert last["step"] == 40
        assert 0 < last["learning_rate"] < 0.15 * base.config.optimizer.peak_lr


def test_the_report_has_its_figures_and_provenance(demo_run):
    folder = demo_run / "report"
    text = (folder / "report.md").read_text()
    figures = re.findall(r"!\[.*?\]\((\w+)\.png\)", text)
    assert {"loss", "schedules", "weights", "gains", "windows"} == set(figures)
    for name in figures:
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == len(figures) and '<td class="short">merge linear</td>' in page
    for words in ("jax ", "seed 0", "config ", "data ", "one interval early"):
        assert words in text


def test_the_result_file_names_its_origin(result):
    for name in ("seed", "config_hash", "data_hash", "versions", "machine", "command", "python", "parameters"):
        assert result[name] or result[name] == 0, name


def test_the_merged_curve_ends_at_the_merge_of_the_table(demo_run, result):
    run = Run(demo_run / "constant")
    validate = run_evaluator(run, "validation", limit_tokens=run.config.evaluation.tokens)
    steps = orbax.complete_steps(run.merge_stream)[-10:]
    merged = merge_checkpoints([run.merge_stream / str(s) for s in steps], np.full(10, 0.1))
    step, loss = result["merged_series"][-1]
    assert step == 40
    assert loss == pytest.approx(validate(merged).loss, rel=1e-6)


def test_running_the_demo_again_trains_nothing(demo_run, short_demo, store):
    before = (demo_run / "constant" / "metrics.jsonl").read_text()
    command = [sys.executable, "-m", "wsm_jax", "train", f"--config={ROOT}/configs/demo.py", *short_demo]
    done = subprocess.run(
        [*command, "--config.seed=0", f"--run={demo_run / 'constant'}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "complete at step 40" in done.stderr
    assert (demo_run / "constant" / "metrics.jsonl").read_text() == before


def test_eval_prints_what_the_contract_names(demo_run, store):
    done = wsm("eval", f"--run={demo_run / 'constant'}", "--split=test", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert {"loss", "loss_stderr", "perplexity", "bits_per_byte", "tokens"} <= set(figures)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))


def test_merge_of_a_run_by_name_and_what_it_records(demo_run, store):
    run = demo_run / "constant"
    done = wsm("merge", f"--run={run}", "--curve=minus_sqrt", "--count=4", "--interval=2", "--last_step=38", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["name"] == "minus_sqrt-4x2-at-38"
    assert record["steps"] == [32, 34, 36, 38]
    np.testing.assert_allclose(record["weights"], merge_weights("minus_sqrt", 4))
    assert orbax.user_metadata(run / "merged" / record["name"])["curve"] == "minus_sqrt"
    again = wsm("merge", f"--run={run}", "--curve=minus_sqrt", "--count=4", "--interval=2", "--last_step=38")
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert wsm("eval", f"--run={run}", f"--merged={record['name']}", "--json").returncode == 0


def test_a_weight_decay_aware_merge_corrects_matrices_only(demo_run, store):
    run = demo_run / "constant"
    done = wsm("merge", f"--run={run}", "--curve=linear", "--count=8", "--weight_decay_aware", "--name=aware", "--json")
    assert done.returncode == 0, done.stderr
    weights = json.loads(done.stdout)["weights"]
    np.testing.assert_allclose(weights["blocks/norm1/scale"], np.full(8, 1 / 8))
    assert weights["blocks/mlp/up/kernel"] != weights["blocks/norm1/scale"]
    np.testing.assert_allclose(sum(weights["blocks/mlp/up/kernel"]), 1)


def test_explicit_inputs_with_weights(demo_run, tmp_path, store):
    stream = demo_run / "constant" / "checkpoints" / "merge"
    done = wsm("merge", f"{stream}/39:0.25", f"{stream}/40:0.75", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    merged = orbax.load_tree(tmp_path / "out")["final_norm"]["scale"]
    parts = [np.asarray(orbax.load_tree(stream / s)["final_norm"]["scale"], np.float64) for s in ("39", "40")]
    np.testing.assert_allclose(merged, 0.25 * parts[0] + 0.75 * parts[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--curve=linear", "--count=50"], "before there are any; it has 40, from 1 to 40"),
        (["--curve=linear", "--count=0"], "count must be a whole number of at least 1"),
        (["--curve=lineer", "--count=3"], "unknown curve 'lineer'"),
        (["--curve=linear"], "--count=N or --window=W"),
        (["--curve=linear", "--count=3", "--last_step=41"], "no checkpoint at step"),
    ],
)
def test_bad_merges_are_refused_in_one_line(demo_run, store, arguments, words):
    done = wsm("merge", f"--run={demo_run / 'constant'}", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_runs_that_cannot_be_compared_are_refused(demo_run, store):
    constant, decay = Run(demo_run / "constant"), Run(demo_run / "decay-linear")
    with pytest.raises(UsageError, match="the first run must be constant"):
        comparison.compare(decay, [constant])
    with pytest.raises(UsageError, match="nothing to compare with"):
        comparison.compare(constant, [])
    with pytest.raises(UsageError, match=r"constant is no branch; make real decays with --branch_from=.*constant@STEP"):
        comparison.compare(constant, [constant])
    constant.config = with_fields(constant.config, schedule__warmup="0.9run")
    with pytest.raises(
        UsageError, match=r"a window as long as the decays has \d+ checkpoints, but only \d+ come after"
    ):
        comparison.compare(constant, [decay])


def test_runs_that_are_no_decays_of_the_first_are_refused(demo_run, store):
    constant, decay = Run(demo_run / "constant"), Run(demo_run / "decay-linear")
    step = decay.facts["branch_step"]

    def changed(**fields):
        run = Run(demo_run / "decay-linear")
        run.config = with_fields(run.config, **fields)
        return run

    assert comparison.check(constant, [decay]) == step
    with pytest.raises(UsageError, match=r"decay-linear has schedule\.name='cosine'; a real decay is a cooldown"):
        comparison.compare(constant, [changed(schedule__name="cosine")])
    for fields in ({"seed": 7}, {"batch_size": 2 * constant.config.batch_size}):
        with pytest.raises(UsageError, match=f"is no branch of .*constant: {next(iter(fields))} differs"):
            comparison.compare(constant, [changed(**fields)])
    stranger = changed()
    stranger.facts["branch_from"] = f"{demo_run / 'other'}@{step}"
    assert comparison.check(constant, [stranger]) == step  # its parent may have been moved here
    shutil.copytree(demo_run / "constant", demo_run / "other", ignore=shutil.ignore_patterns("checkpoints"))
    assert comparison.check(constant, [stranger]) == step  # a copy
    facts = {**constant.facts, "config_id": "another"}
    (demo_run / "other" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=r"was branched from .*other, not from .*constant"):
        comparison.compare(constant, [stranger])


def test_a_report_without_validations_and_of_one_document(linear, tmp_path, monkeypatch):
    nan = float("nan")
    rows = [dataclasses.replace(r, difference=Difference(r.difference.loss, nan)) for r in linear.rows]
    monkeypatch.setattr(
        Run, "metrics", lambda self, kind=None: [] if kind != "train" else [{"step": 1, "loss": 2.0, "seconds": 1.0}]
    )
    folder = report.write(dataclasses.replace(linear, rows=tuple(rows)), tmp_path / "report")
    found = json.loads((folder / "table.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["rows"][1]["difference_stderr"] is None
    assert (folder / "loss.png").is_file() and (folder / "gains.svg").is_file()
    assert "+nan" not in (folder / "table.csv").read_text() + (folder / "report.md").read_text()


def row_of(result, group, difference, curve="linear", name=None):
    """A row of the comparison with another difference."""
    row = next(row for row in result.rows if row.group == group and (group == "raw" or row.curve == curve or name))
    raw = result.rows[0].test
    test = dataclasses.replace(raw, nats=raw.nats + difference * raw.tokens)
    return dataclasses.replace(row, test=test, difference=Difference(difference, 0.01), name=name or row.name)


def test_findings_state_the_share_of_the_decay_that_merging_recovers(linear):
    chosen = dataclasses.replace(row_of(linear, "chosen", -0.15, name="merge chosen on validation: ema"), curve="ema")
    rows = [
        row_of(linear, "raw", 0.0),
        row_of(linear, "merge", -0.10),
        row_of(linear, "merge", -0.12, "cosine"),
        chosen,
        row_of(linear, "decay", -0.20),
    ]
    text = report.findings(dataclasses.replace(linear, rows=tuple(rows)))
    assert "by -0.2000 nats a token" in text[0]
    assert text[1] == "Share of each real decay's gain that the merge emulating it recovers: linear 50%."
    assert re.search(r"picked on test \(cosine, \d+ steps\) changes it by -0\.1200: 60% of the decay's gain", text[2])
    assert re.search(r"chosen on validation \(ema, \d+ steps\) changes it by -0\.1500: 75% of", text[3])
    worse = report.findings(dataclasses.replace(linear, rows=(*rows[:-1], row_of(linear, "decay", 0.01))))
    assert len(worse) == 1  # of a decay that gains nothing there is no share


def test_losses_that_cannot_be_compared_are_not(demo_run, store):
    constant, stale = Run(demo_run / "constant"), Run(demo_run / "constant")
    stale.facts["data_hash"] = "0" * 64
    with pytest.raises(UsageError, match="have changed since it was trained"):
        run_evaluator(stale, "test")
    linear, cosine = (Run(demo_run / f"decay-{curve}") for curve in ("linear", "cosine"))
    step = cosine.facts["branch_step"]
    cosine.facts["branch_step"] = step + 1
    with pytest.raises(UsageError, match=rf"must be branched at one step, they start at \[{step}, {step + 1}\]"):
        comparison.compare(constant, [linear, cosine])
    linear.facts["data_hash"] = "0" * 64
    with pytest.raises(UsageError, match=r"decay-linear was trained on other data than .*constant"):
        comparison.compare(constant, [linear])


def test_a_run_that_is_not_done_is_not_compared(demo_run, store, tmp_path):
    linear = Run(shutil.copytree(demo_run / "decay-linear", tmp_path / "short"))
    for step in orbax.complete_steps(linear.resume_stream):
        shutil.rmtree(linear.resume_stream / str(step))
    with pytest.raises(UsageError, match=r"short is at step 0 of \d+; finish it first"):
        comparison.compare(Run(demo_run / "constant"), [linear])


def test_a_report_with_learned_weights(demo_run, store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "learn", functools.partial(tuning.learn, steps=10))
    runs = [str(demo_run / name) for name in ("constant", "decay-linear")]
    assert cli.main(["report", *runs, "--learned", "--json", f"--output={tmp_path / 'report'}"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    (row,) = [row for row in rows if row["group"] == "learned"]
    assert (row["window"], row["extra_tokens"]) == (10, 0) and np.isfinite(row["difference"])
    assert "merge learned on validation" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "gains.png").is_file()


def test_a_report_on_a_full_disk_leaves_the_one_that_is_there(demo_run, store, disk, linear, capsys):
    place = disk(8)
    report.write(linear, place / "report")
    before = {file.name: file.read_bytes() for file in (place / "report").iterdir()}
    fill(place, 100_000)
    runs = [str(demo_run / name) for name in ("constant", "decay-linear")]
    assert cli.main(["report", *runs, f"--output={place / 'report'}"]) == 2
    assert re.match(FULL, capsys.readouterr().err.splitlines()[-1])
    assert {file.name: file.read_bytes() for file in (place / "report").iterdir()} == before
    assert sorted(path.name for path in place.iterdir()) == ["ballast", "report"]


def test_two_decays_of_one_curve_are_told_apart(demo_run, store, tmp_path):
    constant, decay = (Run(demo_run / name) for name in ("constant", "decay-linear"))
    again = Run(shutil.copytree(decay.path, tmp_path / "again"))
    result = comparison.compare(constant, [decay, again])
    assert result.labels == ("linear (decay-linear)", "linear (again)")
    namesake = Run(shutil.copytree(decay.path, tmp_path / "other" / "again"))
    assert len(set(comparison._labels([again, namesake, decay]))) == 3
    assert [row.name for row in result.rows if row.group == "decay"] == [f"real decay, {x}" for x in result.labels]
    assert set(result.references) == {"constant rate", *(f"real decay, {x}" for x in result.labels)}
    assert set(result.rates) == {"constant", *result.labels}
    folder = report.write(result, tmp_path / "report")
    assert "real decay, linear (again)" in (folder / "report.md").read_text()


def test_a_decay_that_the_interval_does_not_divide_is_not_said_to_be_equal(linear):
    decay = linear.base.plan.steps - linear.branch_step
    assert f"= the decay's {decay}" == report._equal(linear)
    odd = dataclasses.replace(linear, branch_step=linear.branch_step - 1)
    assert f"= {decay}, the multiple of the interval that is nearest to the decay's {decay + 1}" == report._equal(odd)
