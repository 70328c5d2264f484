"""A run in a bucket, by real processes: killed within saves, resumed, followed, merged, evaluated; and with faults."""

import json
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.buckets import BUCKET, CUT
from tests.runs import ROOT, assert_same_bits, assert_same_checkpoints, ended, records
from tests.two_processes import two_processes
from wsm_jax import Run, UsageError, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.config import to_dict
from wsm_jax.evaluation import evaluate
from wsm_jax.io import places, publish
from wsm_jax.training.loop import train

pytest_plugins = ["tests.buckets", "tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("buckets")]

STEPS = 12
SHORT = {
    "duration": f"{STEPS}steps",
    "checkpoint__merge_interval": "2steps",
    "checkpoint__resume_interval": "4steps",
    "checkpoint__branch_points": "",
    "evaluation__interval": "6steps",
}


@pytest.fixture(scope="module")
def here(tiny):
    """The run that those in the bucket are compared with, on a disk."""
    return tiny.run("short-on-disk", **SHORT)


def wsm(tiny, bucket, *arguments):
    """A command as a process of its own, for which the server is the service."""
    return subprocess.Popen(
        [sys.executable, "-m", "wsm_jax", *map(str, arguments)],
        cwd=ROOT,
        env={**tiny.environment, **bucket.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(text):
    """What a process printed, without what TensorStore says of an account that it does not find."""
    return [line for line in text.splitlines() if "google_auth_provider" not in line]


def killed_at(tiny, bucket, command, wanted):
    """Starts a command and kills it at the first request whose method and path match ``wanted``."""
    process = wsm(tiny, bucket, *command)

    def fault(method, path, body):
        if process.poll() is None and re.search(wanted, f"{method} {path.replace('%2F', '/')}"):
            process.kill()
            return CUT
        return None

    with bucket.failing(fault):
        status, output = ended(process)
    assert status == -signal.SIGKILL, output


@pytest.fixture(scope="module")
def run(tiny, bucket, here):
    """The tiny run, killed within a save of each stream, and followed from its last start to its end."""
    address = f"gs://{BUCKET}/runs/killed"
    command = ["train", f"--config={tiny.file('bucket', **SHORT)}", f"--run={address}", "--quiet"]
    # Its arrays are there, and the marker of the second full state is not.
    killed_at(tiny, bucket, command, r"POST /upload.*resume/8/wsm_published")
    found = Run(address)
    assert orbax.complete_steps(found.resume_stream) == [4] and orbax.complete_steps(found.merge_stream) == [2, 4, 6, 8]
    assert bucket.names("runs/killed/checkpoints/resume/8/params/")
    killed_at(tiny, bucket, command, r"POST /upload.*merge/10/params/.*/c/")
    began = orbax.complete_steps(found.resume_stream)[-1]  # the second state may still have been on its way
    assert began in (4, 8) and orbax.complete_steps(found.merge_stream)[-1] == 8
    assert bucket.names("runs/killed/checkpoints/merge/10/")
    trainer = wsm(tiny, bucket, *command)
    options = ["--curve=cosine", "--count=3", "--every=6", "--follow", "--json"]
    follower = wsm(tiny, bucket, "merge", f"--run={address}", *options)
    status, output = ended(trainer)
    assert (status, lines(output)) == (0, [])
    out, err = follower.communicate(timeout=300)
    assert follower.returncode == 0, err
    assert [record["step"] for record in found.metrics("start")] == [0, 4, began]
    return Run(address), [json.loads(line) for line in out.splitlines()]


def test_killed_and_resumed_it_is_the_run_on_a_disk_bit_for_bit(run, here, bucket):
    found, _ = run
    assert_same_checkpoints(here, found)
    assert records(found) == records(here)
    marked = [name for name in bucket.names("runs/killed/checkpoints/") if name.endswith("wsm_published.json")]
    folders = {name.rpartition("/")[0] for name in marked}
    names = bucket.names("runs/killed/checkpoints/")
    assert [name for name in names if not any(name.startswith(f"{folder}/") for folder in folders)] == []
    assert "runs/killed/wsm_claim.json" not in bucket.names()


def test_a_second_process_merges_what_comes(run, here):
    _, merged = run
    assert [record["steps"][-1] for record in merged] == list(range(6, STEPS + 1, 6))
    for record in merged:
        expected = merge_checkpoints([here.merge_stream / str(s) for s in record["steps"]], merge_weights("cosine", 3))
        assert_same_bits(orbax.load_tree(record["output"]), expected)


def test_it_is_merged_evaluated_and_inspected(run, here, capsys, tmp_path):
    found, _ = run
    options = ["--curve=linear", "--count=4", "--name=verified", "--verify"]
    assert cli.main(["merge", f"--run={found.path}", *options]) == 0
    steps = [str(step) for step in range(STEPS - 6, STEPS + 1, 2)]
    merged = merge_checkpoints([here.merge_stream / step for step in steps], merge_weights("linear", 4))
    assert_same_bits(orbax.load_tree(found.merged("verified")), merged)
    capsys.readouterr()
    assert cli.main(["merge", f"--run={found.path}", *options]) == 2
    assert "verified exists; choose another name" in capsys.readouterr().err
    losses = []
    for where, name in ((found, "--merged=verified"), (found, f"--step={STEPS}"), (here, f"--step={STEPS}")):
        assert cli.main(["eval", f"--run={where.path}", name, "--split=test", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert np.isfinite(losses[0]) and losses[1] == losses[2]
    assert cli.main(["inspect", str(found.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["merge_steps"] == list(range(2, STEPS + 1, 2)) and "verified" in facts["merged"]
    assert cli.main(["inspect", "--hashes", str(found.path)]) == 0
    assert " 0 files damaged" in capsys.readouterr().out
    # To a disk, and from a disk there.
    assert (
        cli.main(["merge", f"{found.merge_stream}/10", f"{found.merge_stream}/12", f"--output={tmp_path / 'm'}"]) == 0
    )
    assert cli.main(["merge", str(tmp_path / "m"), f"{tmp_path / 'm'}", f"--output=gs://{BUCKET}/twice"]) == 0


def test_damage_is_told_from_the_listing_alone(run, bucket, capsys):
    found, _ = run
    name = next(n for n in bucket.names() if re.search(r"runs/killed/checkpoints/resume/12/params/ocdbt.*/d/", n))
    kept = bucket.objects[name]
    try:
        bucket.put(name, kept.data[:-1] + bytes([kept.data[-1] ^ 1]), {})
        assert cli.main(["eval", f"--run={found.path}", "--step=8"]) == 0
        capsys.readouterr()
        assert cli.main(["inspect", "--hashes", str(found.path)]) == 2
        assert f"gs://{BUCKET}/{name} is damaged; the next older state is" in capsys.readouterr().out
    finally:
        bucket.objects[name] = kept


def test_a_step_without_its_marker_is_not_there(run, bucket):
    found, _ = run
    marker = "runs/killed/checkpoints/merge/12/wsm_published.json"
    kept = bucket.objects.pop(marker)
    try:
        assert orbax.complete_steps(found.merge_stream)[-1] == 10
        assert not orbax.is_checkpoint(found.merge_stream / "12")
    finally:
        bucket.objects[marker] = kept


def test_a_run_whose_full_state_is_refused_goes_on_from_the_one_before_bit_for_bit(tiny, here, bucket):
    address, ended = f"gs://{BUCKET}/runs/refused", []

    def refused(method, path, body):
        """From the marker of the second full state on nothing may be written or removed any more."""
        if method == "POST" and re.search("resume.*8.*wsm_published", path):
            ended.append(path)
        return 403 if ended and method != "GET" else None

    with bucket.failing(refused), pytest.raises(UsageError, match="access denied") as caught:
        train(tiny.config(**SHORT), address, quiet=True)
    assert "\n" not in str(caught.value)
    assert orbax.complete_steps(Run(address).resume_stream) == [4]
    assert bucket.names("runs/refused/checkpoints/resume/8/params/")
    found = train(tiny.config(**SHORT), address, quiet=True)
    assert [record["step"] for record in found.metrics("start")] == [0, 4]
    assert_same_checkpoints(here, found)
    assert records(found) == records(here)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_what_fails_for_a_while_costs_nothing_but_time(tiny, here, bucket):
    """Unavailable, too many requests, a connection cut within an upload and one cut after it was done."""
    left = {503: 3, 429: 2, CUT: 3}

    def fault(method, path, body):
        if "checkpoints" in path and sum(left.values()) and len(bucket.requests) % 9 == 0:
            chosen = max(left, key=lambda kind: left[kind])
            left[chosen] -= 1
            return chosen
        return None

    with bucket.failing(fault):
        found = train(tiny.config(**SHORT), f"gs://{BUCKET}/runs/faults", quiet=True)
    assert not any(left.values())
    assert_same_checkpoints(here, found)
    assert records(found) == records(here)
    assert all(publish.changed(found.merge_stream / str(step)) == [] for step in (2, 12))


def test_a_bucket_that_may_not_be_written_is_one_line_before_compilation(tiny, bucket, capsys, monkeypatch):
    monkeypatch.setattr("wsm_jax.training.loop._run", lambda *_: pytest.fail("compiled"))
    command = ["train", f"--config={tiny.file('denied', **SHORT)}", f"--run=gs://{BUCKET}/runs/denied", "--quiet"]
    with bucket.failing(lambda method, *_: 403 if method != "GET" else None):
        assert cli.main(command) == 2
    err = lines(capsys.readouterr().err)
    assert len(err) == 1 and f"gs://{BUCKET}/runs/denied: access denied" in err[0]
    assert not bucket.names("runs/denied")
    with bucket.failing(lambda *_: 403):
        assert cli.main(["inspect", f"gs://{BUCKET}/runs/killed"]) == 2
        assert cli.main(["merge", f"--run=gs://{BUCKET}/runs/killed", "--curve=linear", "--count=2"]) == 2
    err = lines(capsys.readouterr().err)
    assert len(err) == 2 and all("access denied" in line for line in err)


def test_access_that_is_withdrawn_within_a_run_is_one_line(tiny, bucket):
    command = ["train", f"--config={tiny.file('withdrawn', **SHORT)}", f"--run=gs://{BUCKET}/runs/gone", "--quiet"]
    with bucket.failing(lambda method, path, _: 403 if method != "GET" and "merge%2F2" in path else None):
        status, output = ended(wsm(tiny, bucket, *command))
    assert status == 2, output
    assert [line for line in lines(output) if f"gs://{BUCKET}/runs/gone/checkpoints/merge/2: access denied" in line]
    assert len(lines(output)) == 1


def test_two_processes_do_not_train_one_run(tiny, bucket, capsys):
    place = places.at(f"gs://{BUCKET}/runs/taken")
    command = ["train", f"--config={tiny.file('taken', **SHORT)}", f"--run={place}", "--quiet"]
    with run_lib.claimed(place):
        assert cli.main(command) == 2
    assert "is being trained by another process" in capsys.readouterr().err


def test_a_branch_of_it_goes_on_from_it(run, here, tiny):
    found, _ = run
    fields = {"schedule__name": "cooldown", "duration": "10steps"}
    config = tiny.config(**{**SHORT, **fields})
    there = train(config, f"gs://{BUCKET}/runs/branch", branch_from=f"{found.path}@8", quiet=True)
    on_disk = train(config, tiny.folder / "branch-here", branch_from=f"{here.path}@8", quiet=True)
    assert_same_checkpoints(on_disk, there, after=8)
    params = evaluate.load(there, evaluate.checkpoint_path(there))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


PROCESS = """
import json, sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from wsm_jax.config import from_dict
from wsm_jax.training.loop import train
assert jax.process_count() == 2
train(from_dict(json.loads(sys.argv[3])), sys.argv[4], quiet=True)
"""


def test_two_processes_of_one_run_write_a_bucket_and_go_on_as_one(tiny, bucket, capsys):
    address, environment = f"gs://{BUCKET}/runs/two", {**tiny.environment, **bucket.environment}
    half = {**SHORT, "duration": "6steps", "mesh__fsdp": 2}
    two_processes(PROCESS, json.dumps(to_dict(tiny.config(**half))), address, environment=environment)
    two = Run(address)
    assert orbax.complete_steps(two.merge_stream) == [2, 4, 6] and orbax.complete_steps(two.resume_stream) == [4, 6]
    assert cli.main(["inspect", "--hashes", address]) == 0
    assert " 0 files damaged" in capsys.readouterr().out
    one = tiny.finish("one-of-two", devices=2, **half)
    for step in ("2", "4", "6"):
        ours, theirs = (jax.tree.leaves(orbax.load_tree(run.merge_stream / step)) for run in (two, one))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    branch = train(tiny.config(**SHORT), f"gs://{BUCKET}/runs/two-on", branch_from=f"{address}@4", quiet=True)
    assert orbax.complete_steps(branch.merge_stream)[-1] == STEPS
