"""What importing the package does to the program that imports it: nothing."""

import os
import subprocess
import sys
import textwrap

import pytest


@pytest.mark.integration
def test_importing_every_module_changes_no_logger_and_no_setting():
    """Compared with what the libraries do by themselves, which are imported first."""
    code = """
        import importlib, logging, os, pkgutil, sys, warnings
        import absl.logging, etils.epath, flax.nnx, grain, jax.numpy, matplotlib.pyplot, ml_collections.config_flags
        import optax, orbax.checkpoint, pyarrow.parquet, safetensors.numpy, tensorflow_datasets, tensorstore, tokenizers
        import lm_eval.evaluator, lm_eval.loggers.evaluation_tracker, lm_eval.models.utils, lm_eval.tasks
        import scipy.stats, tqdm
        from orbax.checkpoint import v1

        def state():
            loggers = {"": logging.getLogger(), **logging.root.manager.loggerDict}
            return {
                "environment": dict(os.environ),
                "warnings": [str(one) for one in warnings.filters],
                "absl": absl.logging.get_verbosity(),
                "jax": {name: str(value) for name, value in jax.config.values.items()},
                "matplotlib": dict(matplotlib.rcParams),
                "limits": (sys.getrecursionlimit(), sys.get_int_max_str_digits()),
                "disabled": logging.root.manager.disable,
                "loggers": {
                    name: (one.level, one.propagate, list(map(str, one.filters)), list(map(str, one.handlers)))
                    for name, one in loggers.items()
                    if isinstance(one, logging.Logger)
                },
            }

        before = state()
        import wsm_jax
        for module in pkgutil.walk_packages(wsm_jax.__path__, "wsm_jax."):
            if not module.name.endswith(("__main__", ".io.bucket", ".io.marker")):  # a gs:// address brings these
                importlib.import_module(module.name)
        after = state()
        for name in before:
            assert after[name] == before[name], (name, before[name], after[name])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
