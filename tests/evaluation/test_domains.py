"""Losses by domain: of what they are, how much of it, and what is refused."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from wsm_jax import Run, UsageError
from wsm_jax.evaluation.domains import evaluators
from wsm_jax.evaluation.evaluate import model_and_data, run_evaluator
from wsm_jax.evaluation.evaluator import _compiled_loss
from wsm_jax.sweeps import Measure

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def run(store, tmp_path, monkeypatch):
    """A small run, the one that version 0.1 wrote; its data are named relative to the root of the repository."""
    monkeypatch.chdir(ROOT)
    with tarfile.open(ROOT / "tests" / "fixtures" / "version_0_1" / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return Run(tmp_path / "run")


@pytest.mark.integration
def test_every_domain_that_is_trained_on_and_the_answers(run, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"prompt": "def f", "answer": "(x):"}) + "\n")
    params = model_and_data(run)[0].init(jax.random.key(0))
    whole = run_evaluator(run, "test")(params)
    measure = Measure(test_tokens=int(whole.tokens.sum()), document_tokens=40, answers={"questions": str(file)})
    compiled = _compiled_loss.cache_info().misses
    found = {name: evaluate(params) for name, evaluate in evaluators(run, measure).items()}
    assert _compiled_loss.cache_info().misses == compiled + 1  # one step for all of them
    (domain,) = {name.partition("/")[2] for name in found} - {"questions"}
    assert list(found) == [f"validation/{domain}", f"test/{domain}", "test/questions"]
    assert found[f"test/{domain}"].tokens.tolist() == np.minimum(whole.tokens, 40).tolist()
    assert found["test/questions"].bytes.tolist() == [4]

    everything = evaluators(run, Measure())[f"test/{domain}"](params)
    np.testing.assert_array_equal(everything.nats, whole.nats)
    assert everything.data_hash == whole.data_hash != found[f"test/{domain}"].data_hash

    with pytest.raises(UsageError, match=f"answers '{domain}': the run is trained on a domain of this name"):
        evaluators(run, Measure(answers={domain: str(file)}))
