"""A second model family, defined here alone: other fields and leaves, no stacked layers, one leaf of four dimensions.

It trains on a mesh of two axes, branches, merges, is evaluated and counted; no line outside this file knows of it.
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from tests.runs import ROOT
from wsm_jax import Run, UsageError, load_tree, merge_checkpoints, merge_weights, named_leaves
from wsm_jax.checkpoints import storage
from wsm_jax.cli import config_flags
from wsm_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelFields,
    OptimizerConfig,
    ScheduleConfig,
    setting,
    with_fields,
)
from wsm_jax.evaluation.evaluate import run_evaluator
from wsm_jax.models import family, model
from wsm_jax.models.family import Family, Leaf
from wsm_jax.parallel import sharding
from wsm_jax.training import optimizer
from wsm_jax.training.loop import train

pytestmark = pytest.mark.integration

STEPS, BRANCH, EVERY, COUNT = 16, 12, 2, 4
AXES = {"data": 2, "tensor": 2}
RULES = {"batch": "data", "embed": "tensor", "into": "tensor"}


@dataclasses.dataclass
class MixerFields(ModelFields):
    """Fields of a network that mixes the last few tokens by a grouped convolution."""

    UNSEEN = ModelFields.UNSEEN | {"residual"}

    family: str = setting("mixer", "architecture")
    width: int = setting(16, "features of a token")
    depth: int = setting(2, "convolutions")
    taps: int = setting(3, "tokens that one convolution sees")
    groups: int = setting(2, "groups of features that are mixed apart")
    residual: float = setting(1.0, "share of a token that passes by a convolution")


def network(config: MixerFields) -> tuple[family.Init, family.Forward]:
    each = config.width // config.groups

    def init(key: jax.Array) -> Any:
        first, last, *keys = jax.random.split(key, 2 + config.depth)
        mixers = {
            f"mixer_{i}": {
                "kernel": each**-0.5 * jax.random.normal(keys[i], (config.taps, config.groups, each, each)),
                "bias": jnp.zeros(config.width),
            }
            for i in range(config.depth)
        }
        table = 0.1 * jax.random.normal(first, (config.vocab_size, config.width))
        return {"table": table, **mixers, "readout": 0.1 * jax.random.normal(last, (config.width, config.vocab_size))}

    def forward(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = params["table"][tokens]
        B, T, D = x.shape
        for i in range(config.depth):
            kernel, bias = (params[f"mixer_{i}"][name] for name in ("kernel", "bias"))
            before = jnp.pad(x, ((0, 0), (config.taps - 1, 0), (0, 0)))
            seen = jnp.stack([before[:, k : k + T] for k in range(config.taps)], axis=2)
            mixed = jnp.einsum("btkgi,kgij->btgj", seen.reshape(B, T, config.taps, config.groups, each), kernel)
            x = config.residual * x + jnp.tanh(mixed.reshape(B, T, D) + bias[None, None])
        return x, params["readout"]

    return init, forward


def leaves(config: MixerFields) -> family.Leaves:
    kernel = Leaf(("tap", "group", "from", "into"), decayed=True, muon=(2, 3))
    mixers = {f"mixer_{i}/kernel": kernel for i in range(config.depth)}
    biases = {f"mixer_{i}/bias": Leaf(("embed",)) for i in range(config.depth)}
    ends = {"table": Leaf(("vocab", "embed"), decayed=True), "readout": Leaf(("embed", "vocab"), decayed=True)}
    return {**ends, **mixers, **biases}


def flops_per_token(config: MixerFields, parameters: int) -> float:
    return 6.0 * (parameters - config.vocab_size * config.width)


def loss(built: model.Model, params: Any, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, family.Metrics]:
    sizes = [jnp.mean(jnp.square(params[f"mixer_{i}"]["bias"])) for i in range(built.config.depth)]
    size = jnp.sum(jnp.stack(sizes))
    return model.mean_loss(built, params, inputs, targets) + 0.01 * size, {"bias_size": size}


def check(config: MixerFields) -> None:
    if config.width % config.groups:
        raise UsageError(f"model.width={config.width} is not a multiple of model.groups={config.groups}")


MIXER = family.register(
    Family(MixerFields, network, leaves, flops_per_token, check, loss=loss, presets={"mixer_small": MixerFields})
)


def get_config() -> Config:
    """Sixteen updates on a few modules of the standard library, which the folder ``$MIXER/text`` holds."""
    folder = Path(os.environ.get("MIXER", "."))
    return Config(
        duration=f"{STEPS}steps",
        batch_size=8,
        accumulate=2,
        model=MixerFields(context=16, vocab_size=302),
        data=DataConfig(
            source=f"text:{folder / 'text'}",
            tokenizer="bpe:300",
            store=str(folder / "store"),
            validation_fraction=0.3,
            test_fraction=0.2,
        ),
        schedule=ScheduleConfig(warmup="2steps"),
        optimizer=OptimizerConfig(peak_lr=1e-2),
        checkpoint=CheckpointConfig(
            merge_interval=f"{EVERY}steps", resume_interval=f"{STEPS}steps", branch_points=f"{BRANCH}steps"
        ),
        evaluation=EvaluationConfig(interval=f"{STEPS}steps", tokens=2000),
    )


def show(folder: Path) -> dict[str, Any]:
    """Everything on four devices; what is asserted of it."""
    mesh, config = sharding.make_mesh(axes=AXES), get_config()
    on = {"mesh": mesh, "rules": RULES, "quiet": True}
    run = train(config, folder / "run", **on)
    cooled = with_fields(config, schedule__name="cooldown", schedule__decay=f"{STEPS - BRANCH}steps")
    branch = train(cooled, folder / "cooldown", branch_from=f"{run.path}@{BRANCH}", **on)
    one = sharding.make_mesh(jax.devices()[:1])
    alone = train(config, folder / "alone", mesh=one, quiet=True)

    paths = [run.merge_stream / str(STEPS - EVERY * i) for i in reversed(range(COUNT))]
    merge_checkpoints(paths, merge_weights("minus_sqrt", COUNT), folder / "merged")
    built = model.build(run.config.model)
    abstract = jax.eval_shape(built.init, jax.random.key(0))
    axes = {path: leaf.axes for path, leaf in built.leaves.items()}
    where = sharding.tree_shardings(mesh, abstract, axes, RULES)
    spread = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), abstract, where)
    merged = load_tree(folder / "merged", abstract=spread)
    with storage.open_sources(paths, None) as sources:
        raw = all(leaf.quantum == 1 for source in sources for leaf in source.leaves.values())
    return {
        "specs": {path: list(leaf.sharding.spec) for path, leaf in named_leaves(merged).items()},
        "raw": raw,
        "loss": {
            "spread": run_evaluator(run, "validation", mesh=mesh, rules=RULES)(merged).loss,
            "whole": run_evaluator(run, "validation")(load_tree(folder / "merged")).loss,
        },
        "rates": [r["learning_rate"] for r in branch.metrics("train")],
        "steps": {
            name: [int(p.name) for p in found.merge_stream.iterdir()]
            for name, found in (("run", run), ("branch", branch))
        },
        "train": {name: found.metrics("train") for name, found in (("run", run), ("alone", alone))},
        "flops": model.flops_per_token(run.config.model, run.facts["parameters"]),
    }


def show_json(folder: str) -> None:
    print(json.dumps(show(Path(folder))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixer")
    (folder / "text").mkdir()
    for (
        name
    ) in "abc bisect cmd code colorsys copy fnmatch glob heapq hmac keyword queue sched shlex stat string".split():
        shutil.copy(Path(os.__file__).parent / f"{name}.py", folder / "text")
    return folder


def process(folder: Path, *command: str) -> str:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "MIXER": str(folder)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def facts(folder: Path) -> dict[str, Any]:
    code = f"from tests.training import test_second_family as it; it.show_json({str(folder)!r})"
    return json.loads(process(folder, "-c", code).splitlines()[-1])


def test_it_trains_on_a_mesh_of_two_axes_as_on_one_device(facts):
    spread, alone = (facts["train"][name][-1] for name in ("run", "alone"))
    assert facts["specs"]["mixer_0/kernel"] == [None, None, None, "tensor"]
    assert facts["specs"]["table"] == [None, "tensor"]
    assert spread["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert facts["train"]["run"][0]["loss"] > spread["loss"] + 0.1
    assert spread["bias_size"] == pytest.approx(alone["bias_size"], rel=1e-2) and spread["bias_size"] > 0


def test_it_branches(facts):
    assert sorted(facts["steps"]["branch"]) == [BRANCH + 2, STEPS]
    assert facts["rates"][-1] < 1e-2


def test_its_merges_are_read_as_raw_ranges_and_are_the_weighted_mean(facts, folder):
    assert facts["raw"]
    process(folder, "-m", "wsm_jax", "merge", f"--run={folder / 'run'}", "--curve=minus_sqrt", f"--count={COUNT}")
    run, weights = Run(folder / "run"), merge_weights("minus_sqrt", COUNT)
    trees = [named_leaves(load_tree(run.merge_stream / str(STEPS - EVERY * i))) for i in reversed(range(COUNT))]
    for place in (folder / "merged", *(folder / "run" / "merged").iterdir()):
        for path, leaf in named_leaves(load_tree(place)).items():
            mean = sum(w * np.asarray(tree[path], np.float64) for w, tree in zip(weights, trees, strict=True))
            np.testing.assert_allclose(leaf, mean, rtol=1e-5, atol=1e-7)


def test_it_is_evaluated_where_its_parameters_lie(facts):
    assert facts["loss"]["spread"] == pytest.approx(facts["loss"]["whole"], rel=1e-5)
    assert 3.0 < facts["loss"]["whole"] < np.log(302)


def test_its_parameters_and_flops_are_counted(facts, folder):
    kernels, biases, ends = 2 * 3 * 2 * 8 * 8, 2 * 16, 2 * 302 * 16  # a vocabulary that is given is not padded
    saved = json.loads((folder / "run" / "run.json").read_text())
    assert saved["format"] == 1
    assert saved["parameters"] == kernels + biases + ends
    assert facts["flops"] == 6 * (kernels + biases + 302 * 16)
    assert model.active_parameters(get_config().model, 7) == 7
    assert [path for path, decayed in saved["decay_mask"].items() if not decayed] == ["mixer_0/bias", "mixer_1/bias"]


def test_its_fields_are_options_of_the_command_line(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from tests.training.test_second_family import get_config\n")
    own: Any = config_flags.load([f"--config={file}", "--config.model.groups=4"]).model
    assert own.groups == 4
    with pytest.raises(UsageError, match=r"unknown option --config\.model\.heads"):
        config_flags.load([f"--config={file}", "--config.model.heads=4"])
    tiny = f"--config={ROOT / 'configs' / 'tiny.py'}"
    chosen: Any = config_flags.load([tiny, "--config.model.taps=5", "--config.model.family=mixer"]).model
    assert (type(chosen), chosen.taps, chosen.context) == (MixerFields, 5, 256)
    with pytest.raises(UsageError, match=r"unknown option --config\.model\.taps"):
        config_flags.load([tiny, "--config.model.taps=5"])


def test_a_leaf_that_is_not_declared_or_does_not_fit_the_rules_is_named():
    shapes = jax.eval_shape(model.build(MixerFields(vocab_size=300)).init, jax.random.key(0))
    declared = dict(leaves(MixerFields()))
    mesh: Any = AbstractMesh((2, 2), ("data", "tensor"))
    spread = functools.partial(sharding.tree_shardings, mesh, {"table": shapes["table"]})
    with pytest.raises(UsageError, match="declare its leaf readout"):
        family.check_leaves({path: leaf for path, leaf in declared.items() if path != "readout"}, shapes)
    with pytest.raises(UsageError, match=r"table is of shape \(300, 16\)"):
        family.check_leaves({**declared, "table": Leaf(("vocab",))}, shapes)
    with pytest.raises(UsageError, match="two dimensions of leaf"):
        spread({"table": ("vocab", "embed")}, {"vocab": "data", "embed": "data"})
    with pytest.raises(UsageError, match="the mesh has data, tensor"):
        spread({"table": ("vocab", "embed")}, {"vocab": "pipe"})


def test_muon_takes_what_it_declares():
    config = MixerFields(vocab_size=128)
    shapes = jax.eval_shape(model.build(config).init, jax.random.key(0))
    rule = optimizer.make(OptimizerConfig(name="muon"), lambda count: 1e-3, leaves(config))
    state = {path: leaf for path, leaf in named_leaves(jax.eval_shape(rule.init, shapes)).items() if leaf.shape}
    first, second = ({path.split("/", 4)[-1] for path in state if f"/{name}/" in path} for name in ("mu", "nu"))
    assert {path for path in state if path.endswith("kernel")} and len(first) >= 6
    assert not any(path.endswith("kernel") for path in second) and any(path.endswith("readout") for path in second)
