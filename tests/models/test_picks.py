"""What is picked where a model leaves it open, by backend and shape."""

import dataclasses

import jax
import pytest

from wsm_jax.config import Config, ModelConfig, config_hash, left_open, with_fields
from wsm_jax.models import family, model, picks

OPEN = ModelConfig(layers=6, d_model=256, heads=8, context=256, vocab_size=8192)


def picked(rows=16, **fields):
    found = model.build(dataclasses.replace(OPEN, **fields), rows).config
    return found.attention, found.scan_unroll, found.loss_blocks


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("blocks", 6, 4)),
        ({"rows": 4}, ("blocks", 6, 1)),
        ({"context": 64}, ("xla", 1, 1)),
        ({"layers": 13}, ("blocks", 1, 4)),
        ({"context": 2048, "rows": 2}, ("blocks", 1, 4)),
        ({"context": 4096, "rows": 1}, ("xla", 6, 4)),
        ({"remat": "full"}, ("blocks", 1, 4)),
        ({"attention": "xla", "scan_unroll": 2, "loss_blocks": 1}, ("xla", 2, 1)),
    ],
)
def test_on_cpus_it_goes_by_the_shape(fields, expected):
    assert picked(**fields) == expected


def test_the_parts_of_the_loss_are_the_fewest_that_divide_the_context(monkeypatch):
    monkeypatch.setattr(picks, "LOGITS", 1000)
    assert picks.loss_blocks(128, 10) == 2  # 640 logits
    assert picks.loss_blocks(192, 16) == 4  # of 48 tokens, for 62.5 are too many and a third of 192 is 64
    assert picks.loss_blocks(130, 5000) == 130


@pytest.mark.parametrize(("backend", "dtype", "kernel"), [("gpu", "bfloat16", "cudnn"), ("tpu", "float32", "splash")])
def test_elsewhere_it_is_the_kernel_of_the_backend(monkeypatch, backend, dtype, kernel):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert picked(compute_dtype=dtype) == (kernel, 1, 1)


@pytest.mark.parametrize("name", family.families())
def test_every_family_leaves_the_same_open(name):
    fields = family.families()[name].fields()
    own = {"ling": {"grouped": "blocks"}}.get(name, {})
    assert left_open(fields) == {"attention": "xla", "scan_unroll": 1, "loss_blocks": 1, **own}
    assert left_open(model.build(dataclasses.replace(fields, vocab_size=128)).config) == {}


def test_what_is_left_open_is_hashed_as_the_defaults_before_it():
    before = with_fields(Config(), model__attention="xla", model__scan_unroll=1, model__loss_blocks=1)
    assert config_hash(before) == config_hash(Config()) == "a4143244d07a"  # of the version before
    assert config_hash(with_fields(Config(), model__loss_blocks=2)) != config_hash(Config())
