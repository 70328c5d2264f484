"""Checkpoints that transformers wrote, merged by ``wsm merge``, against sums that torch computed in float64.

``tests/golden/make.py`` made the files; ``tests/golden/check.py`` compares the logits of the merged models.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import wsm_jax
from wsm_jax import cli

GOLDEN = Path(__file__).parent.parent / "golden"
WEIGHTS = json.loads((GOLDEN / "made_with.json").read_text())["weights"]
COUNT = 5


@pytest.mark.parametrize("weights", ["uniform", "weighted"])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_wsm_merge_gives_the_sum_that_torch_computed(family, weights, tmp_path):
    inputs = [GOLDEN / family / str(i) for i in range(COUNT)]
    given = [str(path) if weights == "uniform" else f"{path}:{WEIGHTS[weights][i]}" for i, path in enumerate(inputs)]
    output = tmp_path / "merged"
    assert cli.main(["merge", *given, f"--output={output}"]) == 0

    merged = {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}
    expected = load_file(GOLDEN / family / f"{weights}.safetensors")
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert merged[name].dtype == np.float32
        # Every product and every sum rounds once: twice COUNT halves of an ulp of numbers that do not exceed 2.
        np.testing.assert_allclose(merged[name], tensor, rtol=0, atol=2 * COUNT * 2.0**-24 * 2, err_msg=name)
    for file in ("config.json", "generation_config.json"):
        assert (output / file).read_bytes() == (inputs[-1] / file).read_bytes()


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_the_golden_merges_are_told_apart_by_the_tolerance(family):
    uniform, weighted = (load_file(GOLDEN / family / f"{name}.safetensors") for name in WEIGHTS)
    for name in uniform:
        assert np.abs(uniform[name] - weighted[name]).max() > 1e-3, name
        assert np.abs(uniform[name]).max() < 2, name


def test_merging_five_folders_in_one_pass_gives_both_sums():
    paths = [GOLDEN / "gpt_neox" / str(i) for i in range(COUNT)]
    merged = dict(wsm_jax.merge_many(paths, WEIGHTS))
    assert set(merged) == set(WEIGHTS)
    for name, tree in merged.items():
        expected = load_file(GOLDEN / "gpt_neox" / f"{name}.safetensors")
        for path, tensor in expected.items():
            np.testing.assert_allclose(tree[path], tensor, rtol=0, atol=2e-6, err_msg=path)
