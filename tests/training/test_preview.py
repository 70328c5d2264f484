"""Previews of an anneal during training: the losses of the merges that are there to be made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs import SIX_STEPS, STEPS
from wsm_jax import UsageError, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.checkpoints.stream import Stream
from wsm_jax.config import CheckpointConfig, Config, EvaluationConfig, PreviewConfig
from wsm_jax.evaluation.evaluate import run_evaluator
from wsm_jax.reporting import report
from wsm_jax.training import preview

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("averages")]

FIELDS = {
    "preview__curves": "linear, exponential",
    "preview__windows": "12steps,0.5run",
    "preview__averages": True,
    "averaging__names": "ema",
    "averaging__ema_decay": "0.8/step",
}


@pytest.fixture(scope="module", params=["point", "mean"])
def previewed(request, tiny):
    fields = FIELDS | {"checkpoint__snapshot": request.param, "log__tensorboard": True}
    return tiny.run(f"previewed-{request.param}", **fields)


def test_a_preview_comes_with_every_validation_once_its_window_is_full(previewed):
    found = {record["step"]: set(record) - {"kind", "step", "seconds"} for record in previewed.metrics("preview")}
    short = {"linear-4x3", "exponential-4x3"}
    long = {"linear-8x3", "exponential-8x3"}
    assert found == {12: short, 24: short | long, 36: short | long, 48: short | long}
    assert all(record["seconds"] > 0 for record in previewed.metrics("preview"))


def test_its_losses_are_those_of_the_merges(previewed):
    validate = run_evaluator(previewed, "validation", limit_tokens=previewed.config.evaluation.tokens)
    means = previewed.config.checkpoint.snapshot == "mean"
    record = previewed.metrics("preview")[-1]
    paths = [previewed.merge_stream / str(step) for step in range(3, STEPS + 1, 3)]
    for curve in ("linear", "exponential"):
        for count in (4, 8):
            weights = merge_weights(curve, count, snapshot="mean" if means else "point")
            tree = merge_checkpoints(paths[-count:], weights[:count], item="mean" if means else "params")
            if means and weights[-1]:
                end = orbax.load_tree(previewed.resume_stream / str(STEPS), "params")
                tree = _add(tree, end, weights[-1])
            assert validate(tree).loss == pytest.approx(record[f"{curve}-{count}x3"], rel=1e-6)
    # Merging helps a run at a constant rate, also one this short.
    assert record["linear-4x3"] != previewed.metrics("validation")[-1]["loss"]


def _add(tree, end, weight):

    return jax.tree.map(lambda t, e: t + np.float32(weight) * e, tree, end)


def test_the_averages_are_evaluated_too(previewed):
    validate = run_evaluator(previewed, "validation", limit_tokens=previewed.config.evaluation.tokens)
    found = previewed.metrics("averages")
    names = {"ema", "mean"} if previewed.config.checkpoint.snapshot == "mean" else {"ema"}
    assert [record["step"] for record in found] == [12, 24, 36, 48]
    for record in found:
        assert set(record) - {"kind", "step", "seconds"} == names
        for name in names:
            tree = orbax.load_tree(previewed.merge_stream / str(record["step"]), name)
            assert validate(tree).loss == record[name]


def test_tensorboard_has_the_curves(previewed):
    files = list((previewed.path / "tensorboard").iterdir())
    written = b"".join(file.read_bytes() for file in files)
    for tag in (b"preview/linear-4x3", b"preview/exponential-8x3", b"averages/ema"):
        assert tag in written


def test_the_report_has_the_curves_and_what_they_cost(previewed, reference):
    (picture,) = report.preview_picture(previewed)
    (axes,) = picture.figure.axes
    shown = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()}
    records = previewed.metrics("preview")
    run = {record["step"]: record["loss"] for record in previewed.metrics("validation")}
    for name in ("linear-4x3", "exponential-8x3"):
        assert shown[name] == [[r["step"], r[name] - run[r["step"]]] for r in records if name in r]
    took = sum(record["seconds"] for record in records)
    assert f"took {took:.1f} s beside" in picture.caption
    assert report.preview_picture(reference) == []


def test_a_preview_changes_nothing_else(previewed, reference):
    assert previewed.metrics("validation") == reference.metrics("validation")


def test_several_devices_preview_as_one_does(tiny):
    fields = FIELDS | SIX_STEPS | {"preview__windows": "6steps", "checkpoint__snapshot": "both"}
    eight, one = tiny.finish("previewed-8", devices=8, **fields), tiny.run("previewed-1", **fields)
    for kind, names in (("preview", ("linear-2x3", "exponential-2x3")), ("averages", ("ema", "mean"))):
        a, b = (run.metrics(kind)[-1] for run in (eight, one))
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_a_mean_over_an_interval_that_began_before_the_branch_is_no_part_of_a_preview(tmp_path):
    tree = {"w": np.ones(3, np.float32)}
    look = [preview.Preview("linear", count, 4, True) for count in (1, 2)]
    with Stream(tmp_path, mergeable=True) as stream:
        for step in (20, 24):
            stream.save(step, {"mean": tree})
        params = jax.tree.map(jnp.asarray, tree)
        found = [[name for name, _ in preview.merges(look, stream, 24, params, start=start)] for start in (18, 16)]
    assert found == [["linear-1x4"], ["linear-1x4", "linear-2x4"]]


def windows(curves="linear", text="100steps", averages=False, evaluation="0.1run", merge_keep=0, snapshot="point"):
    config = Config(
        duration="1000steps",
        preview=PreviewConfig(curves=curves, windows=text, averages=averages),
        checkpoint=CheckpointConfig(merge_interval="20steps", merge_keep=merge_keep, snapshot=snapshot),
        evaluation=EvaluationConfig(interval=evaluation),
    )
    return preview.windows(config, plan_lib.plan(config))


def test_windows_are_curves_times_durations():
    names = [window.name for window in windows("linear, cosine", "100steps,0.2run")]
    assert names == ["linear-5x20", "linear-10x20", "cosine-5x20", "cosine-10x20"]
    assert windows("") == []
    assert not windows()[0].means
    assert windows(snapshot="both")[0].means


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curves": "lineal"}, "unknown curve 'lineal'"),
        ({"text": "110steps"}, r"preview\.windows='110steps' is 110 steps, not a multiple of the merge stream's 20"),
        ({"text": "1.2run"}, r"preview\.windows='1\.2run' needs 60 checkpoints, but this run saves 50"),
        ({"text": "0steps"}, r"preview\.windows='0steps' is 0 steps"),
        ({"text": "soon"}, r"preview\.windows='soon' is not a duration"),
        ({"merge_keep": 4}, r"needs 5 checkpoints, but checkpoint\.merge_keep=4"),
        ({"evaluation": "50steps"}, r"evaluation\.interval is 50 steps and checkpoint\.merge_interval 20"),
        ({"evaluation": ""}, r"evaluation\.interval is empty"),
        ({"averages": True}, r"averaging\.names asks for none"),
    ],
)
def test_previews_that_cannot_be_made(settings, message):
    with pytest.raises(UsageError, match=message):
        windows(**settings)
