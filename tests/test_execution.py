"""The committed results of known solutions, wrong ones and attacks, as root and as another user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import execution

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("who", ["root", "user"])
def test_what_was_found_is_what_the_docs_say(who):
    found = json.loads((ROOT / "results" / "execution" / f"{who}.json").read_text())
    assert [one["mechanism"] for one in found["mechanisms"]] == ["bubblewrap", "landlock"]
    for one in found["mechanisms"]:
        passed = {name: (suite["passed"], suite["programs"]) for name, suite in one["solutions"].items()}
        assert passed == {
            "humaneval": (164, 164),
            "humaneval, bodies that return None": (0, 164),
            "mbpp": (498, 500),
        }
        assert {*execution.ATTACKS} < {*one["attacks"]} and all(each["contained"] for each in one["attacks"].values())
        assert one["version"] and one["python"] and one["kernel"]
    math = found["answers"]["math500"]
    assert (math["accepted"], math["solutions"], len(math["of the next problem accepted"])) == (500, 500, 3)
    assert found["answers"]["gsm8k"]["accepted"] == found["answers"]["gsm8k"]["solutions"] == 1319
    assert found["environment"]["machine"]


def test_processes_and_those_that_they_began():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert execution.parents()[child.pid] == os.getpid()
        assert child.pid in execution.descendants(os.getpid()) and execution.descendants(child.pid) == set()
        child.communicate()
