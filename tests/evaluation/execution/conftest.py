"""The mechanisms that keep programs in. One that is not there fails the tests: they would say nothing without it."""

import pytest

from wsm_jax.evaluation.execution import confine, mechanism, probe
from wsm_jax.evaluation.execution.mechanism import Mechanism


@pytest.fixture(scope="session")
def tried() -> list[tuple[str, Mechanism | str]]:
    """What was tried on this machine, and what came of it."""
    return list(probe.tried())


@pytest.fixture(params=["bubblewrap", "landlock"])
def holding(request: pytest.FixtureRequest, tried: list[tuple[str, Mechanism | str]]) -> Mechanism:
    """Each mechanism; an old kernel has no Landlock, all else is to be had (bubblewrap comes with the extra dev)."""
    for _, found in tried:
        if isinstance(found, Mechanism) and found.name == request.param:
            return found
    if request.param == "landlock" and confine.landlock_version() < mechanism.LANDLOCK_NEEDED:
        pytest.skip("this kernel has no Landlock, or an old one")
    reasons = {name: found for name, found in tried if isinstance(found, str)}
    return pytest.fail(f"{request.param} does not hold here: {reasons}")
