"""The family that docs/extending.md adds is causal and whole, and is trained, merged and measured as any other."""

import importlib
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsm_jax import Run, UsageError, cli
from wsm_jax.config import MODEL_FIELDS, ModelConfig
from wsm_jax.models import family, model

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def mixer(tmp_path, monkeypatch):
    """The page's file, imported; what it registers is forgotten afterwards."""
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "register" in b]
    (tmp_path / "mixer_of_the_page.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mixer_of_the_page", raising=False)
    others = {name: one for name, one in family.families().items() if name != "mixer"}  # another test's may be there
    monkeypatch.setattr(family, "_FAMILIES", others)
    monkeypatch.setitem(MODEL_FIELDS, "mixer", None)
    return importlib.import_module("mixer_of_the_page")


@pytest.mark.integration
def test_the_family_of_the_page_declares_its_leaves_and_is_causal(mixer):
    built = model.build(mixer.MixerFields(layers=2, d_model=16, context=8, vocab_size=32))
    params = built.init(jax.random.key(0))
    family.check_leaves(built.leaves, params)
    params["blocks"]["mix"] *= 20  # so that it matters which tokens are mixed
    tokens = np.random.default_rng(0).integers(0, 32, (3, 8))
    changed = tokens.copy()
    changed[:, 5] = (tokens[:, 5] + 1) % 32
    logits, other = (np.asarray(built.apply(params, jnp.asarray(t))) for t in (tokens, changed))
    np.testing.assert_array_equal(logits[:, :5], other[:, :5])
    assert (np.abs(logits - other)[:, 5:].max(axis=-1) > 1e-4).all()


def test_conversations_are_refused_by_a_family_that_cannot_keep_them_apart(mixer):
    model.check_packed(model.build(ModelConfig(layers=1, d_model=16, heads=2, context=8, vocab_size=32)))
    built = model.build(mixer.MixerFields(layers=1, d_model=16, context=8, vocab_size=32))
    with pytest.raises(UsageError, match="models of family mixer take no positions and segments"):
        model.check_packed(built)


@pytest.mark.integration
def test_the_family_of_the_page_is_trained_merged_and_measured(mixer, store, library_text, tmp_path, capsys):
    small = {
        "duration": "8steps", "schedule.warmup": "1steps", "checkpoint.merge_interval": "2steps",
        "checkpoint.branch_points": "", "evaluation.tokens": "1000", "model.family": "mixer", "model.layers": "1",
        "model.d_model": "16", "model.context": "32", "data.source": f"text:{library_text}",
        "data.tokenizer": "bpe:300", "data.validation_fraction": "0.2", "data.test_fraction": "0.2",
    }  # fmt: skip
    settings = [f"--config.{field}={value}" for field, value in small.items()]
    assert cli.main(["train", f"--config={ROOT}/configs/tiny.py", f"--run={tmp_path / 'run'}", *settings]) == 0
    assert isinstance(Run(tmp_path / "run").config.model, mixer.MixerFields)
    assert cli.main(["merge", f"--run={tmp_path / 'run'}", "--curve=linear", "--count=3"]) == 0
    assert cli.main(["eval", f"--run={tmp_path / 'run'}", "--merged=linear-3x2-at-8"]) == 0
    capsys.readouterr()
    assert cli.main(["generate", f"--run={tmp_path / 'run'}", "--prompt=import"]) == 2
    assert "family mixer keep nothing of tokens before" in capsys.readouterr().err
