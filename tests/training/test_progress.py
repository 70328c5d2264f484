"""Waiting for data is counted where the device idles, and nowhere else."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsm_jax.config import LogConfig
from wsm_jax.io.files import read_jsonl
from wsm_jax.training.metrics import Writer
from wsm_jax.training.progress import Progress

READ = 0.01  # seconds that a batch takes, far less than the update of the second test on any CPU


@pytest.fixture
def progress(tmp_path):
    writer = Writer(tmp_path, LogConfig(), start_step=0, settings={})
    yield Progress(
        writer,
        lambda step: np.float32(1e-3),
        tokens_per_step=1,
        tokens_read=int,
        flops_per_token=1.0,
        start=0,
        total=1,
        name="run",
        quiet=True,
    )
    writer.close()


def waited(progress, loss, folder):
    progress.add({"loss": loss})
    with progress.waiting():
        time.sleep(READ)
    progress.flush()
    return read_jsonl(folder / "metrics.jsonl")[-1]["data_seconds"]


def test_a_batch_that_is_later_than_the_update_was_waited_for(progress, tmp_path):
    assert waited(progress, jax.block_until_ready(jnp.float32(2.0)), tmp_path) >= READ


def test_a_batch_that_is_read_while_the_device_computes_was_not(progress, tmp_path):
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 400, lambda _, y: y @ y / 512, x)[0, 0])
    x = jnp.ones((512, 512))
    slow = slow.lower(x).compile()
    loss = slow(x)
    assert waited(progress, loss, tmp_path) == 0.0
    assert float(loss) == 1.0
