"""Folders of steps, whoever wrote them: what their names tell, which of them a window takes, and `wsm merge FOLDER`."""

import json
import os

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from wsm_jax import UsageError, cli, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.merging import steps as steps_lib
from wsm_jax.merging.steps import choose, common_steps, look_into, sorted_series, step_in, step_of

LAYOUTS = ["{}", "checkpoint-{}", "step{}-unsharded", "step{}-tokens2B", "ep=1-step={}", "global_step{}", "ckpt_{:08d}"]
LAYOUTS += ["batch64-ckpt{}"]  # of two words of a kind the last one


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_step_in_a_name(layout):
    name = layout.format(1200)
    assert step_in(name) == step_of(f"some/run7/{name}") == step_of(f"some/run7/{name}/default") == 1200


@pytest.mark.parametrize("name", ["seed1", "²", "٣", "default", "model-2", "step", "v1.5", "9" * 19, "prestep4x", ""])
def test_names_without_a_step(name):
    assert step_in(name) is None


@pytest.mark.parametrize("layout", [*LAYOUTS, "{}/default", "{}/items", "checkpoint-{}/model", "ep=1-step={}.ckpt"])
def test_a_shell_sorts_by_letters_and_this_by_steps(layout):
    paths = [f"run2/{layout.format(step)}" for step in (1000, 800, 900)]
    ordered = [paths[1], paths[2], paths[0]]
    assert sorted_series(paths) == sorted_series(ordered) == ordered
    assert common_steps(ordered) == [800, 900, 1000] and common_steps(paths) is None


def test_series_are_sorted_apart():
    given = ["a/step9", "b/step3", "x/seed2", "a/step4", "b/step2", "x/seed1"]
    assert sorted_series(given) == ["a/step4", "b/step2", "x/seed2", "a/step9", "b/step3", "x/seed1"]
    assert common_steps(["a/step4", "b/step9"]) is None
    assert common_steps(["a/step4-tokens1B", "a/step9-tokens2B"]) == [4, 9]


# --- a folder --------------------------------------------------------------------------------------------------------


def model(folder, value):
    """A Hugging Face folder whose only tensor holds ``value``."""
    folder.mkdir(parents=True)
    save_file({"w": np.full(4, value, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def written(folder):
    """The value of a merge of such folders."""
    (value,) = set(load_file(folder / "model.safetensors")["w"].tolist())
    return value


def merge(capsys, *arguments):
    """Exit status and lines on stderr of ``wsm merge``."""
    status = cli.main(["merge", *map(str, arguments)])
    return status, capsys.readouterr().err.splitlines()


def folder_of(root, steps):
    for step in steps:
        model(root / f"checkpoint-{step}", step)
    return look_into(root)


EVEN = list(range(500, 5001, 500))


@pytest.mark.parametrize(
    ("steps", "given", "chosen"),
    [
        (EVEN, {"count": 3}, [4000, 4500, 5000]),
        (EVEN, {"count": 3, "last_step": 3000}, [2000, 2500, 3000]),
        (EVEN, {"count": 3, "interval": 1000}, [3000, 4000, 5000]),
        (EVEN, {"window": "1500steps"}, [4000, 4500, 5000]),
        (EVEN, {"window": "3000 steps", "interval": 1000}, [3000, 4000, 5000]),
        (EVEN, {"window": "3000steps", "count": 3}, [3000, 4000, 5000]),
        (EVEN, {"window": "3000steps", "count": 3, "interval": 1000}, [3000, 4000, 5000]),
        (EVEN, {"last_step": 1500}, [500, 1000, 1500]),
        (EVEN, {"interval": 1500}, [500, 2000, 3500, 5000]),
        # The newest three, and every thousandth for ever.
        ([1000, 2000, 3000, 3040, 3050, 3060], {"count": 3, "interval": 1000, "last_step": 3000}, [1000, 2000, 3000]),
        ([1000, 2000, 3000, 3040, 3050, 3060], {"count": 4}, [3000, 3040, 3050, 3060]),
        ([1000, 2000, 3000, 3040, 3050, 3060], {"window": "100steps"}, [3000, 3040, 3050, 3060]),
        ([7], {"window": "1steps"}, [7]),
    ],
)
def test_the_window_of_a_folder(steps, given, chosen):
    folder = steps_lib.Folder(None, dict.fromkeys(steps), [])
    assert choose(folder, **given) == chosen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 11}, "count=11, but .* has only 10 up to step 5000"),
        ({"count": 10**18}, "has only 10 up to step 5000; it has 500, 1000, 1500,"),
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"count": 3, "interval": 700}, r"no checkpoint at step 4300 \(needed: 3 every 700 steps up to 5000\); it has"),
        ({"count": 10**18, "interval": 500}, "no checkpoint at step 0"),
        ({"count": 2, "last_step": 10**18}, f"no checkpoint at step {10**18}; it has"),
        ({"window": "0.1run"}, "knows neither tokens nor the length of the run; give steps"),
        ({"window": "0steps"}, "give steps"),
        ({"window": "1700steps", "interval": 500}, "no multiple of interval=500"),
        ({"window": "1000steps", "count": 3}, "no multiple of count=3"),
        ({"window": "1000steps", "count": 3, "interval": 500}, "is not count=3 x interval=500; give two of the three"),
    ],
)
def test_windows_that_a_folder_has_not(given, message, tmp_path):
    folder = steps_lib.Folder(tmp_path, dict.fromkeys(EVEN), [])
    with pytest.raises(UsageError, match=message):
        choose(folder, **given)


@pytest.mark.parametrize("layout", ["checkpoint-{}", "step{}-unsharded", "ep=1-step={}", "checkpoint-{}/model", "{}"])
def test_a_folder_of_models_is_merged_by_its_steps(tmp_path, capsys, layout):
    """With minus_sqrt the order counts: by letters 1000 would come first."""
    steps = (800, 900, 1000, 1100)
    for step in steps:
        model(tmp_path / "in" / layout.format(step), step)
    (tmp_path / "in" / "runs").mkdir()  # as a trainer leaves it
    arguments = [tmp_path / "in", "--curve=minus_sqrt", "--count=3", f"--output={tmp_path / 'out'}", "--json"]
    assert cli.main(["merge", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert written(tmp_path / "out") == pytest.approx(merge_weights("minus_sqrt", 3) @ [900, 1000, 1100])
    record = json.loads(printed.out)
    assert record["steps"] == [900, 1000, 1100]
    paths = [str(tmp_path / "in" / layout.format(step)) for step in steps[1:]]
    assert [entry["path"] for entry in record["inputs"]] == paths
    assert cli.main(["merge", str(tmp_path / "in"), "--count=3", f"--output={tmp_path / 'other'}"]) == 0
    assert capsys.readouterr().out == f"merged 3 checkpoints of steps 900 to 1100 into {tmp_path / 'other'}\n"


def test_a_folder_that_is_itself_a_model(tmp_path, capsys):
    """As a trainer's output folder, which has the last model and the steps before it."""
    root = tmp_path / "in"
    model(root, 7)
    for step in (500, 1000):
        model(root / f"checkpoint-{step}", step)
    (root / "1500.orbax-checkpoint-tmp-3").mkdir()
    (root / "checkpoint-1500").mkdir()  # without a model yet
    status, err = merge(capsys, root, "--count=2", f"--output={tmp_path / 'steps'}")
    assert (status, written(tmp_path / "steps")) == (0, 750)
    unfinished = [
        f"wsm: note: {root}/{name} is left out: it holds no complete checkpoint"
        for name in ("1500.orbax-checkpoint-tmp-3", "checkpoint-1500")
    ]
    assert err == unfinished
    status, err = merge(capsys, root, f"--output={tmp_path / 'model'}")
    assert (status, written(tmp_path / "model")) == (0, 7)
    assert err == [
        f"wsm: note: {root} is merged itself; its steps, checkpoint-500 to checkpoint-1000, are left out "
        "(--count=N takes them)"
    ]


@pytest.mark.parametrize("item", [None, "items", "default"])
def test_the_folder_of_an_orbax_manager(tmp_path, capsys, item):
    """N or N/items or N/default, with the gaps of retention, and the item that is written has the same name."""
    root = tmp_path / "manager"
    for step in (1000, 2000, 3000, 3050):
        path, tree = root / str(step), {"w": jnp.full(3, float(step))}
        if item is None:
            orbax.save_tree(path, tree)
        else:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path / item, tree)
    (root / "4000.orbax-checkpoint-tmp").mkdir()
    output = tmp_path / "out"
    more = ["--count=3", "--interval=1000", "--last_step=3000", "--output_item=default"]
    status, err = merge(capsys, root, "--curve=minus_sqrt", *more, f"--output={output}")
    assert (status, err) == (
        0,
        [f"wsm: note: {root}/4000.orbax-checkpoint-tmp is left out: it holds no complete checkpoint"],
    )
    assert orbax.item_names(output) == ["default"]
    expected = merge_weights("minus_sqrt", 3) @ [1000, 2000, 3000]
    np.testing.assert_allclose(orbax.load_tree(output)["w"], np.full(3, expected), rtol=1e-6)


def test_an_orbax_manager_itself(tmp_path, capsys):
    root = tmp_path / "manager"
    options = ocp.CheckpointManagerOptions(max_to_keep=2, keep_period=100)
    with ocp.CheckpointManager(root, options=options) as manager:
        for step in (100, 200, 250, 300, 330, 360):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(3, float(step))}))
    assert sorted(map(int, os.listdir(root))) == [100, 200, 300, 330, 360]
    status, err = merge(
        capsys, root, "--curve=linear", "--count=3", "--interval=100", "--last_step=300", f"--output={tmp_path / 'out'}"
    )
    assert (status, err) == (0, [])
    np.testing.assert_allclose(orbax.load_tree(tmp_path / "out")["w"], np.full(3, 200.0), rtol=1e-6)


# --- spacing ---------------------------------------------------------------------------------------------------------


def test_steps_that_are_not_evenly_spaced(tmp_path, capsys):
    steps, root = (1000, 1050, 1500), tmp_path / "in"
    folder_of(root, steps)
    each = [root / f"checkpoint-{step}" for step in steps]
    for number, inputs in enumerate(([root, "--count=3"], each)):
        index, true = (tmp_path / f"{kind}-{number}" for kind in ("index", "true"))
        status, err = merge(capsys, *inputs, "--curve=minus_sqrt", f"--output={index}")
        assert (status, written(index)) == (0, pytest.approx(merge_weights("minus_sqrt", 3) @ steps))
        assert err == [
            "wsm: warning: the steps 1000, 1050, 1500 are not evenly spaced, and minus_sqrt weighs them by index; "
            "--spacing=true takes a decay curve at the true steps"
        ]
        status, err = merge(capsys, *inputs, "--curve=minus_sqrt", "--spacing=true", f"--output={true}")
        expected = merge_weights("minus_sqrt", 3, steps=steps) @ steps
        assert (status, written(true), err) == (0, pytest.approx(expected), [])
    assert merge(capsys, *each, f"--output={tmp_path / 'mean'}") == (0, [])  # a plain mean knows no spacing
    assert merge(capsys, *each, "--curve=mean", f"--output={tmp_path / 'named'}") == (0, [])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{in}", "--count=9"], "count=9, but {in} has only 2 up to step 1000; it has 800, 1000"),
        (["{in}:0.5", "--count=2"], "--count goes with --run=DIR or with one folder of checkpoints, without a weight"),
        (["{in}", "{in}", "--last_step=800"], "--last_step goes with --run=DIR or with one folder"),
        (["{in}/checkpoint-800", "--count=2"], "is itself a checkpoint and holds no steps"),
        (
            ["{in}", "--count=99999999999999999999"],
            "argument --count: '99999999999999999999' is no whole number of at most 18 digits",
        ),
        (["{in}"], "{in} is a folder of steps; it holds those of steps 800 to 1000: add --count=N"),
        (["nowhere", "--count=2"], "nowhere is no folder of checkpoints; nothing is there"),
        (
            ["s3://bucket/run", "--count=2"],
            "s3://bucket/run is no path of a file system, nor gs://BUCKET/PATH; mount the bucket",
        ),
        (["{in}", "--count=2", "--every=100"], "--every goes with --run"),
        (["{in}", "--count=2", "--follow"], "--follow goes with --run"),
        (["{in}/checkpoint-1000", "{in}/checkpoint-800", "--curve=cosine"], "give {in}/checkpoint-800 {in}/checkpoint"),
        (["{in}", "--count=2", "--spacing=true", "--curve=wma"], "wma goes by index; the true steps go with a decay"),
        (["{in}", "--count=2", "--output_item=a/b"], "output_item=a/b: a folder of safetensors has no items"),
        (["{in}", "--count=2", "--order=sorted"], "order='sorted': choose reverse or scramble:SEED"),
        (["{in}", "--count=2", "--extrapolate=0.5"], "extrapolate=0.5 must be a finite number of at least 1"),
        (["{in}/checkpoint-800:0", "{in}/checkpoint-1000:0"], "the weights for w are all zero"),
        (["{in}", "--count=2", "--run="], "--run= is empty"),
        (["{in}", "--run", ""], "an argument is empty"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, arguments, words):
    root = str(tmp_path / "in")
    folder_of(tmp_path / "in", (800, 1000))
    output = tmp_path / "out"
    status, err = merge(capsys, *(a.replace("{in}", root) for a in arguments), f"--output={output}")
    errors = [line for line in err if "warning" not in line]
    assert (status, len(errors)) == (2, 1), err
    assert words.replace("{in}", root) in errors[0]
    assert not output.exists()


def test_two_checkpoints_of_one_step_or_in_one_folder(tmp_path):
    model(tmp_path / "a" / "step5", 1)
    model(tmp_path / "a" / "step5-unsharded", 1)
    with pytest.raises(UsageError, match=r"step5 and .*step5-unsharded are both of step 5; name the checkpoints"):
        look_into(tmp_path / "a")
    for name in ("ema", "model"):
        model(tmp_path / "b" / "5" / name, 1)
    with pytest.raises(
        UsageError, match=r"5 holds several checkpoints, ema, model; say which one to read, --item=NAME"
    ):
        look_into(tmp_path / "b")
    assert look_into(tmp_path / "b", "ema").checkpoints == {5: tmp_path / "b" / "5" / "ema"}


def test_an_item_chooses_among_the_folders_of_a_step(tmp_path, capsys):
    """Whichever they are: folders of safetensors, checkpoints of Orbax, or items of one."""
    for step in (1, 2):
        orbax.save_tree(tmp_path / "a" / str(step) / "ema", {"w": jnp.full(3, float(step))})
        orbax.save_tree(tmp_path / "a" / str(step) / "model", {"w": jnp.zeros(3)})
        orbax.save_tree(tmp_path / "b" / str(step), {"w": jnp.full(3, float(step))}, item="ema")
    for name in ("a", "b"):
        arguments = [tmp_path / name, "--count=2", "--item=ema", f"--output={tmp_path / f'{name}-out'}"]
        assert merge(capsys, *arguments) == (0, [])
        np.testing.assert_array_equal(orbax.load_tree(tmp_path / f"{name}-out")["w"], np.full(3, 1.5))


def test_a_path_that_ends_like_a_weight(tmp_path, capsys):
    """A time, say. What exists is a path; with a weight after it, it has that."""
    paths = [tmp_path / f"2026-11-30T07:{minute}:00" for minute in (10, 20)]
    for value, path in enumerate(paths):
        model(path, value)
    assert merge(capsys, *paths, f"--output={tmp_path / 'mean'}") == (0, [])
    assert written(tmp_path / "mean") == 0.5
    assert merge(capsys, f"{paths[0]}:0.25", f"{paths[1]}:0.75", f"--output={tmp_path / 'weighted'}") == (0, [])
    assert written(tmp_path / "weighted") == 0.75


# --- weights ---------------------------------------------------------------------------------------------------------


def test_past_the_merge_and_in_another_order(tmp_path, capsys):
    root, steps = tmp_path / "in", np.asarray([100.0, 200.0, 400.0, 500.0])
    folder_of(root, map(int, steps))
    arguments = [root, "--count=4", "--curve=mean", "--extrapolate=2", f"--output={tmp_path / 'past'}"]
    status, err = merge(capsys, *arguments)
    assert (status, written(tmp_path / "past")) == (0, 500)  # 100 + 2 (300 - 100)
    assert err == [f"wsm: warning: the weight of {root / 'checkpoint-100'} is negative, -0.5"]
    assert merge(capsys, root, "--count=4", "--curve=wma", "--order=reverse", f"--output={tmp_path / 'r'}")[0] == 0
    assert written(tmp_path / "r") == pytest.approx(np.asarray([4, 3, 2, 1]) / 10 @ steps)
    record = json.loads((tmp_path / "r" / "merge.json").read_text())
    assert (record["curve"], record["order"]) == ("wma", "reverse")
    cli.main(["weights", "--curve=linear", "--count=4", "--extrapolate=2", "--order=scramble:1", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert sorted(printed["weights"]) == [-0.5, 0.5, 0.5, 0.5]
    assert (printed["extrapolate"], printed["order"]) == (2.0, "scramble:1")
