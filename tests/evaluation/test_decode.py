"""Tokens after prompts: with what is kept of those before as without, alone as in a batch, on one device as on 8."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from tests.parameters import drawn
from tests.runs import ROOT
from wsm_jax.config import ModelConfig
from wsm_jax.errors import NonFiniteError
from wsm_jax.evaluation import decode
from wsm_jax.evaluation.sampling import Sampling
from wsm_jax.models import model
from wsm_jax.models.llama import LlamaFields
from wsm_jax.models.neox import NeoxFields

CONTEXT, VOCABULARY, NEW = 64, 48, 21
SMALL: Any = {"layers": 2, "d_model": 32, "heads": 4, "context": CONTEXT, "vocab_size": VOCABULARY}
CONFIGS = {
    "gpt2": ModelConfig(**SMALL, bias=True, activation="gelu_new"),
    "neox": NeoxFields(**SMALL),
    "llama": LlamaFields(**SMALL, kv_heads=2),
    "qwen": LlamaFields(
        **SMALL, kv_heads=1, head_dim=6, qkv_bias=True, qk_norm=True, tied=True, rope_skip=2, attention="blocks"
    ),
}
GREEDY = Sampling()
LENGTHS = (3, 17, 1, 30, 8, 16, 25, 2)


def prompts(count: int = len(LENGTHS)) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, VOCABULARY, length).tolist() for length in LENGTHS[:count]]


@functools.cache
def built(name: str) -> tuple[model.Model, Any]:
    """A model with larger matrices than initial ones, so that it matters who sees whom."""
    made = model.build(CONFIGS[name])
    params = drawn(made)
    return made, jax.tree.map(lambda leaf: leaf * 6 if leaf.ndim == 3 else leaf, params)


def tokens(decoder: decode.Decoder, given: Sequence[list[int]], sampling: Sampling = GREEDY, **more: Any) -> np.ndarray:
    count = len(given)
    usual: dict[str, Any] = {
        "numbers": range(count),
        "ends": [],
        "limits": [NEW] * count,
        "ended": np.zeros(count, bool),
    }
    found = decode.tokens_after(decoder, given, sampling=sampling, **usual | more)
    return np.concatenate(list(found), axis=1)[:, :NEW]


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.integration) for name in ("qwen", "neox", "llama"))]
)
def test_greedy_tokens_are_those_of_the_forward_that_keeps_nothing(name):
    made, params = built(name)
    decoder, given = decode.decoder(made, params), prompts()
    found = tokens(decoder, given)
    whole = np.zeros((len(given), CONTEXT), np.int32)
    for row, prompt in enumerate(given):
        whole[row, : len(prompt) + NEW] = [*prompt, *found[row]]
    likeliest = np.asarray(jax.jit(made.apply)(params, whole)).argmax(axis=-1)
    for row, prompt in enumerate(given):
        # If each token is the likeliest after those before, so are they all if made one by one.
        np.testing.assert_array_equal(found[row], likeliest[row, len(prompt) - 1 : len(prompt) + NEW - 1])
    assert len({*found.ravel().tolist()}) > 5  # it says something
    np.testing.assert_array_equal(tokens(decoder, given[1:2]), found[1:2])


@pytest.mark.integration
def test_room_is_added_when_it_is_full(monkeypatch):
    made, params = built("llama")
    decoder = decode.decoder(made, params)
    found = tokens(decoder, prompts(2))
    monkeypatch.setattr(decode, "_ROOM", decode.CHUNK)
    np.testing.assert_array_equal(tokens(decoder, prompts(2)), found)


@pytest.mark.integration
def test_draws_depend_on_seed_and_number_and_not_on_the_batch():
    decoder, given, hot = decode.decoder(*built("llama")), prompts(4), Sampling(1.0, top_k=20, seed=5)
    together = tokens(decoder, given, hot)
    for number in (0, 3):
        alone = tokens(decoder, given[number : number + 1], hot, numbers=[number])
        np.testing.assert_array_equal(alone[0], together[number])
    same = tokens(decoder, [given[0]] * 4, hot)
    assert len({tuple(row) for row in same.tolist()}) == 4
    assert (tokens(decoder, given, dataclasses.replace(hot, seed=6)) != together).any()


@pytest.mark.integration
def test_rows_end_at_their_limit_at_an_end_token_and_when_the_caller_says_so():
    decoder, given = decode.decoder(*built("gpt2")), prompts(3)
    free = tokens(decoder, given)
    end = int(free[1, 9])
    first = free[1].tolist().index(end)
    cut = tokens(decoder, given, ends=[end], limits=[4, NEW, NEW])
    np.testing.assert_array_equal(cut[0, :5], [*free[0, :4], decode.NONE])
    np.testing.assert_array_equal(cut[1, : first + 1], free[1, : first + 1])
    assert (cut[1, first + 1 :] == decode.NONE).all()

    ended, seen = np.zeros(3, bool), []
    for part in decode.tokens_after(decoder, given, range(3), Sampling(), ends=[], limits=[NEW] * 3, ended=ended):
        seen.append(part)
        ended[2] = True
    made = np.concatenate(seen, axis=1)
    assert made[2, 0] == free[2, 0] and (made[2, 1:] == decode.NONE).all()
    np.testing.assert_array_equal(made[:2, :NEW], free[:2])


@pytest.mark.integration
def test_padding_of_the_vocabulary_is_never_chosen():
    made, params = built("llama")
    few = tokens(decode.decoder(made, params, vocab_size=5), prompts(2))
    assert few.max() < 5 and tokens(decode.decoder(made, params), prompts(2)).max() >= 5


@pytest.mark.integration
def test_logits_that_are_not_finite_name_the_prompt_and_the_leaf():
    made, params = built("gpt2")
    table = params["position_embedding"].at[20].set(np.nan)
    decoder = decode.decoder(made, {**params, "position_embedding": table})
    assert tokens(decoder, prompts(1), limits=[10]).shape[1] > 9  # they end before position 20
    with pytest.raises(NonFiniteError, match=r"after prompt 2: leaf position_embedding has 32 of 2048 values"):
        tokens(decoder, prompts(2), limits=[10, 10])


EIGHT = """
import json, jax, numpy as np
from tests.evaluation.test_decode import built, prompts, tokens
from wsm_jax.evaluation import decode
from wsm_jax.evaluation.sampling import Sampling
from wsm_jax.parallel import sharding
found = {}
for name in ("gpt2", "neox", "llama"):
    made, params = built(name)
    one = decode.decoder(made, params, sharding.make_mesh(jax.devices()[:1]))
    many = decode.decoder(made, params, sharding.make_mesh(axes={"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}))
    kernel = many.params["blocks"]["mlp"]["up"]["kernel"][0]
    found[name] = {
        "equal": [bool((tokens(one, prompts(n), s) == tokens(many, prompts(n), s)).all())
                  for n, s in ((8, Sampling()), (3, Sampling(1.0, top_p=0.9)))],
        "cut": kernel.sharding.shard_shape(kernel.shape)[0] * kernel.sharding.shard_shape(kernel.shape)[1] * 4
               == kernel.size,
    }
print(json.dumps(found))
"""


@pytest.mark.integration
def test_eight_devices_make_the_tokens_of_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env={**os.environ, **flags}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in json.loads(done.stdout).items():
        assert found == {"equal": [True, True], "cut": True}, name
