"""Orbax is kept quiet while we call it, and only then."""

import logging

import numpy as np
import pytest

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.quiet import quiet
from wsm_jax.checkpoints.stream import Stream

LOGGERS = ("", "absl")


def warn(path: str) -> None:
    """What a file of that path logs through both loggers."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for level in (logging.WARNING, logging.ERROR):
            logger.handle(logger.makeRecord(name, level, path, 1, logging.getLevelName(level), (), None))


def test_only_what_orbax_says_below_an_error_is_dropped_and_only_inside(caplog):
    before = [list(logging.getLogger(name).filters) for name in LOGGERS]
    with quiet(), quiet():
        warn("/site-packages/orbax/checkpoint/x.py")
        warn("/home/me/x.py")
    inside, _ = caplog.messages, caplog.clear()
    assert sorted(inside) == ["ERROR"] * 4 + ["WARNING"] * 2
    warn("/site-packages/orbax/checkpoint/x.py")
    assert sorted(caplog.messages) == ["ERROR"] * 2 + ["WARNING"] * 2
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert [list(logging.getLogger(name).filters) for name in LOGGERS] == before


def test_saves_and_loads_say_nothing_and_leave_the_loggers_as_they_were(tmp_path, caplog):
    before = [list(logging.getLogger(name).filters) for name in LOGGERS]
    tree = {"w": np.ones((4, 4), np.float32)}
    with caplog.at_level(logging.WARNING):
        with Stream(tmp_path / "merge", mergeable=True) as stream:
            stream.save(1, {"params": tree})
        orbax.save_tree(tmp_path / "one", tree)
        for path in (tmp_path / "one", tmp_path / "merge" / "1"):
            orbax.load_tree(path)
    assert caplog.messages == []
    assert [list(logging.getLogger(name).filters) for name in LOGGERS] == before
