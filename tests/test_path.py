"""The picture of the paths of the parameters."""

import sys

import numpy as np
import pytest

from experiments import path


def test_components_keep_distances_in_a_plane():
    angles = np.linspace(0, 2 * np.pi, 7)[:-1]
    plane = np.stack([3 * np.cos(angles), np.sin(angles)], axis=1)
    points = plane @ np.linalg.qr(np.random.default_rng(0).normal(size=(50, 2)))[0].T
    found, shares = path.components(list(points.astype(np.float32)))
    np.testing.assert_allclose(shares, [0.9, 0.1], atol=1e-6)
    apart = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(apart(found), apart(plane), atol=1e-5)


@pytest.mark.integration
@pytest.mark.xdist_group("demo")
def test_a_run_and_its_decay_are_drawn(demo_run, tmp_path, monkeypatch, capsys):
    runs = [str(demo_run / "constant"), str(demo_run / "decay-minus_sqrt")]
    monkeypatch.setattr(sys, "argv", ["path", *runs, f"--output={tmp_path / 'p'}"])
    assert path.main() == 0
    assert (tmp_path / "p.png").stat().st_size > 10_000
    assert (tmp_path / "p.svg").is_file()
