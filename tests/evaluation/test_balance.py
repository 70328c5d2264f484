"""Balance over many batches, and a bias set anew on them."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.runs import assert_same_bits
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import balance
from wsm_jax.models import model
from wsm_jax.models.ling_fields import LingFields
from wsm_jax.parallel import sharding

SMALL = LingFields(
    layers=2, d_model=16, heads=2, kv_heads=1, head_dim=8, d_ff=16, experts=4, expert_ff=8, groups=1, groups_kept=1,
    context=16, vocab_size=64, bias_rate=5e-3,
)  # fmt: skip


@pytest.mark.integration
def test_batches_count_as_one_and_a_bias_that_is_set_on_them_balances_them():
    built, mesh = model.build(SMALL), sharding.make_mesh(jax.devices()[:1])
    params = jax.jit(built.init)(jax.random.key(0))
    params["blocks"]["router"]["kernel"] *= 20  # so that scores differ
    rows: Any = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)
    batches: Any = [{"inputs": part[:, :-1], "targets": part[:, 1:], "document": None} for part in (rows[:4], rows[4:])]
    before = balance.measured(built, params, batches, mesh)
    loss, found = jax.jit(lambda params: model.training_loss(built, params, rows[:, :-1], rows[:, 1:]))(params)
    _, whole = model.after_update(built, params, found)
    assert before == pytest.approx({name: float(value) for name, value in whole.items()}, rel=1e-5)
    assert before["lm_loss"] < loss
    again = balance.rebalanced(built, params, batches * 30, mesh)
    moved, kept = again["blocks"]["router"].pop("bias"), params["blocks"]["router"].pop("bias")
    assert_same_bits(again, params)
    again["blocks"]["router"]["bias"] = moved
    after = balance.measured(built, again, batches, mesh)
    assert np.abs(moved - kept).max() > 0.01 and after["max_violation"] < 0.7 * before["max_violation"]
    with pytest.raises(UsageError, match="at least one batch"):
        balance.measured(built, again, [], mesh)
