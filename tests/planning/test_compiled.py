"""The train step compiled for a slice of TPUs on this machine; run by ``make test-plan`` in an environment that can."""

import json
import os
import subprocess
import sys

import pytest

from tests.runs import ROOT

pytestmark = pytest.mark.plan
MODEL = ["--config.model.layers=4", "--config.model.d_model=128", "--config.model.compute_dtype=bfloat16"]


def test_a_small_model_for_four_chips():
    """Beside the estimate, with signs of life; with a mesh of two axes, so that both send."""
    arguments = ["--config=configs/tiny.py", "--topology=v5e:2x2", "--config.mesh.fsdp=2", *MODEL, "--json"]
    found = {}
    for name, more in (("compiled", []), ("estimated", ["--fast"])):
        done = subprocess.run(
            [sys.executable, "-m", "wsm_jax", "plan", *arguments, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
        assert ("compiling for v5e:2x2" in done.stderr) == (name == "compiled")
    real, estimate = found["compiled"], found["estimated"]
    assert real["how"].startswith("compiled by jax") and real["fits"] and estimate["how"] == "estimated from shapes"
    assert real["bytes_split"]["state"] == pytest.approx(estimate["bytes_split"]["state"], rel=0.02)
    # At most: what is small stays in the chips' own memory, which the compiler does not count.
    assert 0 < real["bytes_split"]["temporaries"] < 1.5 * estimate["bytes_split"]["temporaries"]
    assert real["flops_per_step"] == estimate["flops_per_step"]
    sent, guessed = (sum(one["collective_bytes"].values()) for one in (real, estimate))
    assert {"data", "fsdp"} <= {axis for along in real["collective_bytes"] for axis in along.split("+")}
    assert 0.3 < guessed / sent < 3
