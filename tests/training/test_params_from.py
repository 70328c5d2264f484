"""Starting a run or a branch with other parameters, e.g. a merge that is fed back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs import BRANCH, MERGE, SIX_STEPS, STEPS, assert_same_bits, counts, state
from wsm_jax import UsageError, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax, run_schedule
from wsm_jax.data import pipeline, tokens
from wsm_jax.models import model as model_lib
from wsm_jax.models import presets
from wsm_jax.parallel import sharding
from wsm_jax.training import optimizer, train_state
from wsm_jax.training.train_step import make_train_step

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


@pytest.fixture(scope="module")
def fed_back(tiny, reference):
    """The mean of four checkpoints, and the run that goes on from it with the state of the branch point."""
    merge = tiny.folder / "mean-of-four"
    paths = [reference.merge_stream / str(BRANCH - MERGE * i) for i in (3, 2, 1, 0)]
    merge_checkpoints(paths, merge_weights("linear", 4), merge)
    run = tiny.run("fed-back", branch_from=f"{reference.path}@{BRANCH}", params_from=merge, log__interval="1steps")
    return merge, run


@pytest.mark.integration
def test_the_run_goes_on_from_the_merge_with_the_state_and_the_tokens_of_the_branch(fed_back, reference):
    """Computed again with nothing of the trainer but its step."""
    merge, run = fed_back
    config, corpus = run.config, tokens.prepare(run.config.data)
    model = model_lib.build(presets.with_vocabulary(config.model, corpus.vocab_size))
    rule = optimizer.make(config.optimizer, run_schedule.from_config(config), model.leaves)
    state = train_state.abstract(model, rule, sharding.make_mesh())
    state["params"] = orbax.load_tree(merge, abstract=state["params"])
    origin = reference.resume_stream / str(BRANCH)
    state["opt_state"] = orbax.load_tree(origin, "opt_state", state["opt_state"])
    state["step"] = jnp.asarray(BRANCH, jnp.int32)
    step = jax.jit(make_train_step(model, rule))
    for done in range(BRANCH, BRANCH + MERGE):
        batch = pipeline.batch_at(corpus, done, context=16, batch_size=8, seed=config.seed)
        state, _ = step(state, jax.tree.map(jnp.asarray, batch))
    saved = orbax.load_tree(run.merge_stream / str(BRANCH + MERGE))
    assert_same_bits(saved, state["params"], BRANCH + MERGE)
    there = orbax.load_tree(reference.merge_stream / str(BRANCH + MERGE))
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(there), strict=True))
    assert run.facts["params_from"] == str(merge.absolute()) and reference.facts["params_from"] is None


@pytest.mark.integration
def test_a_run_may_begin_with_the_parameters_of_another(tiny, reference):
    start = reference.merge_stream / str(STEPS)
    run = tiny.run("begun", params_from=start, **SIX_STEPS, log__interval="1steps", averaging__names="running_mean")
    first = run.metrics("train")[0]
    assert first["step"] == 1 and first["loss"] < reference.metrics("train")[0]["loss"] - 0.5
    assert counts(state(run, 6)) == {6}


@pytest.mark.integration
def test_other_parameters_are_refused_before_anything_is_written(tiny, reference, fed_back, tmp_path):
    origin, merge = f"{reference.path}@{BRANCH}", fed_back[0]
    tree = orbax.load_tree(merge)
    orbax.save_tree(tmp_path / "extra", {**tree, "head": np.zeros(3, np.float32)})
    orbax.save_tree(tmp_path / "wide", jax.tree.map(lambda x: np.concatenate([x, x], axis=-1), tree))
    with pytest.raises(UsageError, match=r"extra: leaf head is \(3,\), in the model missing"):
        tiny.run("never", branch_from=origin, params_from=tmp_path / "extra")
    with pytest.raises(UsageError, match=r"wide: leaf .* is \(.*32\), in the model \(.*16\)"):
        tiny.run("never", params_from=tmp_path / "wide")
    with pytest.raises(UsageError, match="nowhere is not a complete Orbax checkpoint"):
        tiny.run("never", params_from=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"--params_from does not go with optimizer\.name=schedule_free"):
        tiny.run("never", params_from=merge, optimizer__name="schedule_free")
    with pytest.raises(UsageError, match=r"is of a model with model\.heads=2, not 4 as here"):
        tiny.run("never", params_from=reference.merge_stream / str(STEPS), model__heads=4)
    with pytest.raises(UsageError, match=rf"the tokenizer differs from that of {reference.path}"):
        tiny.run("never", params_from=reference.merge_stream / str(STEPS), data__tokenizer="bpe:299")
    assert not (tiny.folder / "never").exists()
    with pytest.raises(UsageError, match=r"was made with params_from='.*mean-of-four', now it is None"):
        tiny.run("fed-back", branch_from=origin, log__interval="1steps")
