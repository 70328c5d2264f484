"""The command line: help, speed, weights, and one line with status 2 for every kind of bad input."""

import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from wsm_jax import cli, merge_weights, update_weights
from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.checkpoints import run_schedule
from wsm_jax.cli import config_flags
from wsm_jax.config import flat_fields

CONFIG = Path(__file__).parent.parent.parent / "configs" / "tiny.py"


def test_help_imports_nothing_heavy_and_is_quick():
    program = (
        "import sys; from wsm_jax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'grain', 'matplotlib', 'tensorflow_datasets', 'ml_collections'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    clock = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - clock < 5  # a heavy import alone takes longer on a busy machine
    for verb in ("prepare", "train", "merge", "weights", "eval", "report"):
        assert verb in done.stdout


@pytest.mark.integration
def test_the_module_and_the_console_script_are_the_same(capsys):
    script = Path(sys.executable).parent / "wsm"
    arguments = ["weights", "--curve=ema", "--count=4", "--json"]
    outputs = [
        subprocess.run(command + arguments, capture_output=True, text=True, check=True).stdout
        for command in ([str(script)], [sys.executable, "-m", "wsm_jax"])
    ]
    assert outputs[0] == outputs[1]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == outputs[0]


def test_train_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name, (_, help_text) in flat_fields(config_flags.load([f"--config={CONFIG}"])).items():
        assert f"{name}: " in text
        assert help_text in text


def test_train_help_lists_the_fields_of_a_family(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--config.model.family=llama", "--help"])
    text = capsys.readouterr().out
    assert "model.kv_heads: int = 0" in text and "model.family=llama;" in text


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"wsm-jax {metadata.version('wsm-jax')}\n")


def test_weights_prints_the_contract(capsys):
    assert cli.main(["weights", "--curve=minus_sqrt", "--count=5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["curve"] == "minus_sqrt"
    assert printed["count"] == 5
    np.testing.assert_allclose(printed["weights"], merge_weights("minus_sqrt", 5))
    np.testing.assert_allclose(printed["update_weights"], update_weights(printed["weights"]))


def test_weights_in_the_weight_decay_aware_form(capsys):
    arguments = ["--learning_rate=1e-3", "--weight_decay=0.1", "--steps_per_interval=1000"]
    assert cli.main(["weights", "--curve=linear", "--count=5", "--json", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)["weights"]
    expected = merge_weights("linear", 5, learning_rate=1e-3, weight_decay=0.1, steps_per_interval=1000)
    np.testing.assert_allclose(printed, expected)


def test_weights_plot(tmp_path, capsys):
    assert cli.main(["weights", "--curve=cosine", "--count=5", f"--plot={tmp_path / 'cosine'}"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"cosine.png", "cosine.svg"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["weights", "--curve=nope", "--count=3"], "unknown curve 'nope'"),
        (["weights", "--curve=linear", "--count=0"], "got 0"),
        (["weights", "--curve=linear", "--count=x"], "--count"),
        (["weights", "--curve=linear", "--count=3", "--weight_decay=0.1"], "learning_rate and steps_per_interval"),
        (["weights", "--count=3"], "--curve"),
        (["nonsense"], "nonsense"),
        (["eval", "--run=/nowhere"], "/nowhere is not a run directory"),
        (["report", "/nowhere"], "/nowhere is not a run directory"),
        (["eval", "--run=/nowhere", "--config=x.py"], "takes no --config"),
        (["merge"], "either checkpoint folders or --run"),
        (["merge", "/a", "--run=/b"], "either checkpoint folders or --run"),
        (["merge", "/a", "/b"], "needs --output"),
        (["merge", "/a", "/b", "--output=/c"], "/a is neither a complete Orbax checkpoint nor"),
        (["merge", "/a", "/b", "--output=/c", "--count=2"], "--count goes with --run=DIR or with one folder"),
        (["merge", "/a", "/b", "--output=/c", "--window=9steps"], "--window goes with --run=DIR or with one folder"),
        (["merge", "/a", "/b", "--output=/c", "--every=9"], "--every goes with --run"),
        (["merge", "/a", "/b", "--output=/c", "--like=/d"], "--like goes with --run"),
        (["merge", "/a", "/b", "--output=/c", "--curve=best:1"], "best:1 needs a run"),
        (["merge", "/a:nan", "/b:1", "--output=/c"], "the weight of /a is nan; it must be a finite number"),
        (["merge", "/a:-inf", "/b:1", "--output=/c"], "the weight of /a is -inf"),
        (["merge", "/a:1e999", "/b:1", "--output=/c"], "the weight of /a is 1e999"),
        (["merge", "--run=/a", "--curve=linear", "--like=/b"], "not allowed with argument"),
        (["merge", "--run=/a", "--count=2"], "needs --curve=C, --schedule=FILE.py:NAME or --like=RUN"),
        (["merge", "--run=/a", "--like=/nowhere", "--count=2"], "/nowhere is not a run directory"),
        (["merge", "--run=/a", "--schedule=nope.py:f", "--count=2"], "no file nope.py"),
        (["train", "--run=/x"], "--config=FILE is missing"),
        (["train", "--run=/x", "--config=nope.py"], "no file nope.py"),
        (
            ["train", "--run=/x", f"--config={CONFIG}", "--config.optimizer.peak=1"],
            "did you mean --config.optimizer.pe",
        ),
        (["train", "--run=/x", f"--config={CONFIG}", "--config.batch_size=many"], "batch_size"),
        (["train", "--run=/x", f"--config={CONFIG}", "--config.duration=5"], "duration='5' is not a duration"),
        (["train", "--run=/x", f"--config={CONFIG}", "--config.optimizer.name=adam"], "unknown optimizer.name 'adam'"),
        (["train", "--run=/x", f"--config={CONFIG}", "--config.schedule.name=step"], "unknown schedule.name 'step'"),
        (["train", "--run=/x", f"--config={CONFIG}", "--branch_from=x"], "RUN@STEP"),
        (
            ["train", "--run=/x", f"--config={CONFIG}", "--distributed"],
            "--distributed: this is no process of a cluster",
        ),
        (["train", f"--config={CONFIG}"], "--run"),
        (["train", f"--config={CONFIG}", "--run="], "--run= is empty; give it a value"),
        (["train", f"--config={CONFIG}", "--run=/x", "--branch_from="], "--branch_from= is empty"),
        (["train", f"--config={CONFIG}", "--run=/x", "--params_from= "], "--params_from= is empty"),
        (["train", f"--config={CONFIG}", "--run=/x", "--branch_from=/a@²"], "is not of the form RUN@STEP"),
        (["train", f"--config={CONFIG}", "--run=/x", "--branch_from=/a@-1"], "is not of the form RUN@STEP"),
        (["train", f"--config={CONFIG}", "--run=/x", f"--branch_from=/a@{'9' * 5000}"], "is not of the form RUN@STEP"),
        (["train", f"--config={CONFIG}", "--run=/x", "--branch_from=@5"], "is not of the form RUN@STEP"),
        (["train", f"--config={CONFIG}", "--run=/x", "--branch_from=/a@5@6"], "/a@5 is not a run directory"),
        (["train", f"--config={CONFIG}", "--run=/x", "--params_from=/proc/version"], "no"),
        (["train", f"--config={CONFIG}", "--run=/proc/version"], "/proc/version is a file, not the folder of a run"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.duration=1e30steps"], "a run has at most 2,147,483,647"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.batch_size=1000000000"], "tokens in one batch; at most"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.batch_size=1" + "0" * 30], "at most 63 bits"),
        (["train", f"--config={CONFIG}", "--run=/x", f"--config.data.tokenizer=bpe:{10**20}"], "at most 1000000"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.averaging.running_mean_start=2run"], "ends at 1000"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.averaging.wsm_window=2run"], "ends at 1000"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.schedule.cycle_start=3run"], "ends at 1000"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.schedule.curve=foo"], "unknown curve 'foo'"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.averaging.ema_decay=foo"], "averaging.ema_decay='foo'"),
        (["train", f"--config={CONFIG}", "--run=/x", "--config.averaging.power_ema_widths=x"], "is not a list of"),
        (["prepare", f"--config={CONFIG}", f"--config.data.tokenizer=bpe:{10**20}"], "at most 1000000"),
        (["eval", "--run="], "--run= is empty"),
        (["eval", "--run=/x", "--merged="], "--merged= is empty"),
        (["eval", "--run=/x", "--average="], "--average= is empty"),
        (["report", ""], "an argument is empty"),
        (["report", "/x", "--output="], "--output= is empty"),
        (["weights", "--curve=linear", "--count=3", "--plot=/proc/none/x"], "/proc/none: No such file or directory"),
        (["train", "--run=/x", f"--config={CONFIG}", "--nonsense=1"], "--nonsense=1"),
        (["merge", "/a", "--cuont=3"], "unrecognized arguments: --cuont=3; did you mean --count? (wsm merge --help"),
        (["merge", "/a", "--last-step", "3"], "did you mean --last_step?"),
        (["merge", "/a", "--count=3", "--zzzz"], "--zzzz (wsm merge --help"),
        (["merge", "/a", "--curve=minus-sqrt", "--output=/b"], "did you mean minus_sqrt?"),
        (["train", "--run=/x", f"--config={CONFIG}", "--model.layers=1"], "did you mean --config.model.layers?"),
        (["train", "--run=/x", f"--config={CONFIG}", "--config.optimizer.lr=1"], "mean --config.optimizer.peak_lr?"),
        (["train", "--run=/x", f"--config={CONFIG}", "--config.layers=1"], "did you mean --config.model.layers?"),
        (["train", "--run=/x", f"--config={CONFIG}", "--config.model.zzzz=1"], "wsm train --help lists all fields"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(arguments, words, capsys):
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("wsm: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys\nsys.exit(0)", r"the file ended the program \(sys\.exit\(0\)\); it must return a Config"),
        ("def get_config(): raise SystemExit('no\\nway')", "the file ended the program"),
        ("def get_config(): return get_config()", "RecursionError"),
        ("def get_config(): return Config", "must return a wsm_jax.Config, not type"),
        ("def get_config(): return Config(batch_size='8')", "batch_size is '8'; it must be a whole number"),
        ("def get_config(): return Config(batch_size=[8])", r"batch_size is \[8\]; it must be a whole number"),
        ("def get_config(): return Config(seed=True)", "seed is True; it must be a whole number"),
        ("def get_config(): return Config(duration=None)", "duration is None; it must be a text"),
        ("def get_config(): return Config(data={'source': 'stdlib'})", "data is .*, not a group of fields"),
    ],
)
@pytest.mark.parametrize("verb", [["train", "--run=/x"], ["prepare"]])
def test_a_file_that_makes_no_configuration_is_refused_in_one_line(body, words, verb, tmp_path, capsys):
    (tmp_path / "c.py").write_text(f"from wsm_jax import Config\n{body}\n")
    assert cli.main([*verb, f"--config={tmp_path}/c.py"]) == 2
    message = capsys.readouterr().err
    assert re.search(words, message) and message.startswith("wsm: ") and message.count("\n") == 1, message


def test_the_names_of_the_package_are_listed():
    import wsm_jax

    assert {"merge", "merge_weights", "merge_checkpoints", "DECAYS", "Run"} <= set(dir(wsm_jax))
    assert all(getattr(wsm_jax, name) is not None for name in wsm_jax.__all__)


def test_as_a_process_too_nothing_but_the_line_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "wsm_jax", "train", "--run=/x", f"--config={CONFIG}", "--config.seed=1.5"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "seed" in done.stderr


def test_overrides_reach_the_configuration():
    config = config_flags.load(
        [
            f"--config={CONFIG}",
            "--config.optimizer.peak_lr=1e-2",
            "--config.data.source=text:a=0.7,text:b=0.3",
            "--config.checkpoint.branch_points=10steps,0.5run",
            "--config.log.tensorboard=true",
        ]
    )
    assert config.optimizer.peak_lr == 1e-2
    assert config.data.source == "text:a=0.7,text:b=0.3"
    assert config.checkpoint.branch_points == "10steps,0.5run"
    assert config.log.tensorboard is True


@pytest.mark.parametrize("name", ["tiny.py", "demo.py", "lawa.py:small", "lawa.py:medium", "lawa.py:large,nanogpt"])
def test_every_configuration_of_the_repository_loads_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_flags.load([f"--config={CONFIG.parent / name}"])
    resolved = plan_lib.plan(config)
    assert resolved.merge_steps()[-1] == resolved.steps
    run_schedule.from_config(config)
