"""The paper's tables and figures on a tiny model: corpus, shared runs, windows that reach into a branch, pages."""

import dataclasses
import itertools
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import matrix
from experiments import (
    combine,
    continue_training,
    corpus,
    cost,
    domains,
    emulation,
    gap,
    jobs,
    merge_algorithm,
    merge_duration,
    merge_granularity,
    protocol,
    training,
    trajectories,
    trajectory,
    tuning,
    wsd_vs_wsm,
)
from experiments.seeds import Seeds
from wsm_jax import UsageError, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.models import model, presets

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("matrix")]  # the runs are shared
RATE = 8e-3


@pytest.fixture(scope="module")
def runs(experiment_text, store, tmp_path_factory):
    """The matrix at its tiniest; nothing is trained before a test asks for it."""
    folder = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSM_EXPERIMENT_DATA", str(experiment_text))
        patch.setenv("WSM_EXPERIMENT_RESULTS", str(folder / "results"))
        settings = (
            "--config.data.tokenizer=bpe:300",
            "--config.data.validation_fraction=0.2",
            "--config.data.test_fraction=0.2",
        )
        yield training.Matrix("tiny", folder / "runs" / "training" / "tiny", settings)


# --- shared runs and windows -----------------------------------------------------------------------------------------


def test_a_window_goes_on_from_a_run_into_its_branch(runs):
    path = runs.path(0, RATE, "switched")
    interval, branch = runs.interval, runs.branch_step
    assert list(path) == list(range(interval, runs.steps + jobs.EXTRA * interval + 1, interval))
    recipe = trajectories.window(path, "linear", 4, branch + 2 * interval)
    assert recipe.steps == tuple(branch + i * interval for i in (-1, 0, 1, 2))
    assert [p.parents[2].name for p in recipe.paths] == ["stable", "stable", "switched", "switched"]
    assert trajectories.window(path, "linear", 3, runs.steps, apart=5).steps == tuple(
        runs.steps - 5 * i * interval for i in (2, 1, 0)
    )
    with pytest.raises(UsageError, match="no 200 checkpoints"):
        trajectories.window(path, "linear", 200, runs.steps)
    with pytest.raises(UsageError, match="up to step"):
        trajectories.window(path, "linear", 2, runs.steps + 1)


def test_branches_of_a_kind_read_the_same_text_and_the_switch_is_at_the_branch(runs):
    stable, switched = (runs.run(0, RATE, job) for job in ("stable", "switched"))
    decay = runs.run(0, RATE, "switched-minus_sqrt")
    assert stable.plan.steps == decay.facts["branch_step"] == switched.plan.switch_step == runs.branch_step
    assert switched.facts["data_hash"] == decay.facts["data_hash"] != stable.facts["data_hash"]
    assert switched.config.data == decay.config.data
    rates = {r["step"]: r["learning_rate"] for r in decay.metrics("train")}
    assert rates[max(rates)] < 0.1 * RATE


@pytest.mark.slow
def test_a_branch_of_a_branch_and_one_that_starts_with_a_merge(runs):
    again, fed_back = (runs.run(0, RATE, job) for job in ("rewarmed-decay", "merged-decay"))
    assert again.facts["branch_from"].endswith(f"rewarmed@{72 * runs.interval}") and again.plan.steps == 160
    assert len(runs.path(0, RATE, "rewarmed-decay")) == 80
    rates = {r["step"]: r["learning_rate"] for r in runs.run(0, RATE, "rewarmed").metrics("train")}
    assert rates[max(rates)] == pytest.approx(RATE) and min(rates) <= runs.steps + 20
    paths = [runs.path(0, RATE, "stable")[runs.branch_step - i * runs.interval] for i in range(16)]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *map(orbax.load_tree, paths))
    found = orbax.load_tree(fed_back.facts["params_from"])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_shared_runs_are_trained_once(runs):
    run = runs.run(0, RATE, "stable")
    before = (run.path / "metrics.jsonl").stat().st_mtime_ns
    training._trained.cache_clear()  # as in another process
    assert runs.run(0, RATE, "stable").path == run.path
    assert (run.path / "metrics.jsonl").stat().st_mtime_ns == before


def test_without_the_rates_the_command_is_named(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("WSM_EXPERIMENT_RESULTS", str(tmp_path))
    with pytest.raises(UsageError, match=r"python -m experiments\.tuning --scale=tiny"):
        training.rates("tiny")


def test_without_the_data_there_is_the_standard_library_and_no_switch(monkeypatch, tmp_path):
    runs = training.Matrix("tiny", tmp_path / "runs" / "training" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WSM_EXPERIMENT_DATA", raising=False)
    assert runs.sources() == training.Sources("stdlib", "", {}) and not runs.switches
    monkeypatch.setenv("WSM_EXPERIMENT_DATA", "no-such-folder")
    with pytest.raises(UsageError, match="no-such-folder"):
        runs.sources()


def test_the_usual_folder_of_text_can_be_switched_off(monkeypatch, tmp_path):
    (tmp_path / "shared" / "data" / "text").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("WSM_EXPERIMENT_DATA", raising=False)
    assert training.text_folder() == pathlib.Path("../shared/data")
    monkeypatch.setenv("WSM_EXPERIMENT_DATA", "")
    assert training.text_folder() is None


def test_a_corpus_that_was_built_elsewhere_needs_no_data(runs, monkeypatch, tmp_path):
    built = runs.sources()
    folder = runs.root.parent.parent / "corpus" / "tiny"
    shutil.copytree(folder, tmp_path / "runs" / "corpus" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WSM_EXPERIMENT_DATA")
    carried = training.Matrix("tiny", tmp_path / "runs" / "training" / "tiny")
    assert carried.switches
    assert carried.sources().anneal == built.anneal.replace(str(folder), str(tmp_path / "runs" / "corpus" / "tiny"))


@pytest.mark.parametrize("scale", matrix.SIZES)
def test_every_scale_has_what_the_experiments_ask_of_it(scale):
    size, config = matrix.SIZES[scale], matrix.get_config(scale)
    assert size.steps % matrix.INTERVALS == 0 and plan_lib.plan(config).merge_interval == size.steps // matrix.INTERVALS
    assert scale in training.MEGABYTES and scale in domains.TOKENS
    assert all(len(tuning.RATES[scale][name]) >= 2 for name in jobs.OPTIMIZERS)
    for name, job in jobs.JOBS.items():
        assert all(job.start < at <= job.end for at in job.keep), name
        parent = jobs.JOBS.get(job.parent)
        assert parent is None or job.start == parent.end or job.start in parent.keep, name


def test_the_scale_for_an_accelerator_is_as_large_as_it_should_be():
    config = matrix.get_config("gpu")
    anywhere = dataclasses.replace(config.model, attention="xla")
    shape = presets.with_vocabulary(anywhere, int(config.data.tokenizer.removeprefix("bpe:")))
    params = jax.eval_shape(model.build(shape).init, jax.random.key(0))
    assert 30e6 < model.parameter_count(params) < 60e6


def test_an_output_that_names_no_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="EXPERIMENT/SCALE"):
        training.matrix_of(tmp_path / "elsewhere" / "seed0", [])


def test_one_factor_that_is_all_there_is_explains_all():
    shapes = merge_granularity.SHAPES
    y = np.asarray([3.0 - 0.5 * math.log(n * a) for n, a in shapes])
    x = {name: [f(*shape) for shape in shapes] for name, f in merge_granularity.FACTORS.items()}
    for adjusted in (False, True):
        assert merge_granularity.explained([x["duration"]], y, adjusted=adjusted) == pytest.approx(1.0)
        assert merge_granularity.explained([x["interval"], x["count"]], y, adjusted=adjusted) == pytest.approx(1.0)
        assert merge_granularity.explained([x["interval"]], y, adjusted=adjusted) < 0.6


def test_the_share_of_a_factor_is_that_of_its_sum_of_squares_and_adjusted_it_is_none_by_chance():
    levels, random = [1, 1, 2, 2, 4, 4], np.random.default_rng(0)
    y = np.asarray([1.0, 3.0, 2.0, 4.0, 9.0, 5.0])
    between = 2 * sum((mean - 4.0) ** 2 for mean in (2.0, 3.0, 7.0))
    assert merge_granularity.explained([levels], y) == pytest.approx(between / np.square(y - 4.0).sum())
    drawn = [merge_granularity.explained([levels], random.standard_normal(6), adjusted=True) for _ in range(2000)]
    assert abs(np.mean(drawn)) < 0.04


def test_a_path_that_goes_straight_on_or_back():
    there, aside = np.asarray([1.0, 0.0, 0.0]), np.asarray([0.0, 2.0, 0.0])
    for path, cosine in (
        ([0 * there, there, 2 * there], 1),
        ([0 * there, there, 0 * there], -1),
        ([0 * there, there, there + aside], 0),
    ):
        steps = trajectory.displacements(trajectory.inner_products(path))
        assert trajectory.turning(steps) == pytest.approx(cosine)
        assert trajectory.lengths(steps) == pytest.approx([np.linalg.norm(b - a) for a, b in itertools.pairwise(path)])


def test_principal_components_keep_the_distances_in_a_plane():
    random = np.random.default_rng(0)
    plane = random.standard_normal((7, 2)) @ np.linalg.qr(random.standard_normal((50, 2)))[0].T + 3.0
    products = trajectory.inner_products(list(plane))
    coordinates, shares = trajectory.components(products)
    assert sum(shares) == pytest.approx(1.0) and shares[0] >= shares[1]
    between = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (plane, coordinates)]
    np.testing.assert_allclose(between[0], between[1], atol=1e-6)
    np.testing.assert_allclose(trajectory.distances(products, 3), between[0][3], atol=1e-6)


def test_inner_products_do_not_depend_on_the_blocks(monkeypatch):
    points = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    monkeypatch.setattr(trajectory, "BLOCK", 4)
    np.testing.assert_allclose(trajectory.inner_products(list(points)), points @ points.T, rtol=1e-5)


def test_seeds_are_paired():
    rows = [{"arm": arm, "seed": s, "test": 1.0 + s + (arm == "b") * 0.1} for s in (2, 0, 1) for arm in "ab"]
    table = Seeds(rows, "arm")
    assert table.of(("a",)) == [1.0, 2.0, 3.0]
    np.testing.assert_allclose(table.minus(("b",), ("a",)), 0.1)
    assert table.best([("a",), ("b",)], "test") == ("a",)


# --- the pages -------------------------------------------------------------------------------------------------------


def test_every_rate_has_both_arms_and_the_best_is_chosen_on_validation(runs):
    records = measured(tuning, runs, (jobs.ADAMW, RATE))
    assert {r["arm"] for r in records} == set(tuning.NAMES)
    assert len(records) == 2 + len(tuning.CURVES) * len(tuning.COUNTS)
    best = training.best(records, jobs.WSM)
    assert best["validation"] == min(r["validation"] for r in records if r["arm"] == jobs.WSM)
    page = tuning.present(records)
    assert (
        f"Chosen: adamw {RATE:g} for WSM and {RATE:g} for WSD (at the edge" in "\n".join(page.lines)
        and "rates" in page.figures
    )
    hashes = {r["arm"]: r["config_hash"] for r in records}
    own = {tuning.RAW: "switched", jobs.WSM: "switched", jobs.WSD: "switched-minus_sqrt"}
    assert hashes == {arm: runs.run(tuning.SEED, RATE, job).facts["config_hash"] for arm, job in own.items()}
    assert len(set(hashes.values())) == 2
    assert set(records[0]["domains"]) == {domain for phase in corpus.PHASES.values() for domain in phase}


def measured(experiment, runs, told):
    folder = runs.root.parent.parent / experiment.EXPERIMENT.name / "tiny" / str(told)
    found = experiment.measure(folder, told, list(runs.settings))
    return [{"piece": str(told), "piece_seconds": 1.0, **record} for record in found]


PAGES = [wsd_vs_wsm, merge_algorithm, merge_duration, merge_granularity, emulation, gap, combine]
PAGES += [continue_training, trajectory, cost]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PAGES)
def test_an_experiment_from_its_runs_to_its_page(runs, experiment):
    file = protocol.results_root() / "tuning" / "tiny" / "records.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {jobs.ADAMW: RATE, jobs.LION: RATE / 10, jobs.MUON: RATE}
    both = [
        {"optimizer": name, "arm": arm, "peak_lr": rate, "validation": 1.0, "test": 1.0}
        for name, rate in found.items()
        for arm in (jobs.WSM, jobs.WSD)
    ]
    both += [{**record, "peak_lr": 1.0, "validation": 2.0, "test": 0.0} for record in both]  # better on test only
    file.write_text("".join(json.dumps(record) + "\n" for record in both))
    assert training.rates("tiny") == {jobs.WSM: RATE, jobs.WSD: RATE}
    assert training.rates("tiny", jobs.LION) == {jobs.WSM: RATE / 10, jobs.WSD: RATE / 10}
    pieces = list(experiment.SCALES["tiny"].values()) if experiment is merge_algorithm else training.SEEDS
    two = [piece for piece in pieces if piece != 2 and piece not in [(name, 2) for name in found]]
    records = [record for piece in two for record in measured(experiment, runs, piece)]
    figures = [value for r in records for value in r.values() if isinstance(value, float)]
    assert figures and all(map(math.isfinite, figures))
    page = experiment.present(records)
    text = "\n".join(page.lines)
    assert "nan" not in text and "minutes of processes" in text
    for name in page.figures:
        assert f"({name}.png)" in text


@pytest.mark.slow
def test_the_merge_of_a_record_comes_out_again(runs):
    records = measured(merge_duration, runs, 0)
    path = runs.path(0, RATE, "constant")
    trees = [orbax.load_tree(path[step]) for step in list(path)[-4:]]
    merged = jax.tree.map(lambda *x: np.tensordot(merge_weights("minus_sqrt", 4), np.asarray(x), 1), *trees)
    loss = np.mean(
        [
            measure(merged).bits_per_byte
            for name, measure in domains.evaluators(runs, runs.run(0, RATE, "constant")).items()
            if name.startswith("test/")
        ]
    )
    row = next(r for r in records if (r["arm"], r["curve"], r["count"]) == ("merge", "minus_sqrt", 4))
    assert row["test"] == pytest.approx(loss, rel=1e-5)
