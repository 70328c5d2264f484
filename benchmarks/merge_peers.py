"""The peers of ``benchmarks/merge.py``. Needs mergekit, torch, transformers and safetensors, and nothing of ours.

    peer/bin/python benchmarks/merge_peers.py '{"task": "loop", "inputs": [...], "weights": {"uniform": [...]}, ...}'

* ``mergekit``: mergekit's own command line with a linear merge, its defaults, no tokenizer and no model card;
* ``averaged``: every folder loaded by transformers, summed by torch's ``AveragedModel`` (uniform only), saved;
* ``loop``: ``load_file``, a running sum in place, ``save_file``;
* ``mergekit_windows``, ``loop_windows``: one merge after another, each of the last so many inputs; the loop in one
  process and without writing, mergekit a process a merge and with writing, the only way it has.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def mergekit(task: dict[str, Any]) -> dict[str, Any]:
    """Becomes mergekit's process."""
    (weights,) = task["weights"].values()
    command = _mergekit_command(task["inputs"], weights, task["output"])
    os.execv(command[0], command)


def mergekit_windows(task: dict[str, Any]) -> dict[str, Any]:
    """A process a merge."""
    start = time.perf_counter()
    for weights in task["weights"].values():
        used = [(path, w) for path, w in zip(task["inputs"], weights, strict=True) if w]
        command = _mergekit_command([path for path, _ in used], [w for _, w in used], task["output"])
        subprocess.run(command, check=True)
        shutil.rmtree(task["output"])
    return {"inner_seconds": time.perf_counter() - start, "merges": len(task["weights"])}


def _mergekit_command(inputs: list[str], weights: list[float], output: str) -> list[str]:
    models = [{"model": path, "parameters": {"weight": w}} for path, w in zip(inputs, weights, strict=True)]
    config = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "dtype": "float32"}
    file = Path(output + ".yml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config))  # YAML contains JSON
    program = str(Path(sys.executable).with_name("mergekit-yaml"))
    return [program, str(file), output, "--no-copy-tokenizer", "--no-write-model-card"]


def averaged(task: dict[str, Any]) -> dict[str, Any]:
    """``torch.optim.swa_utils.AveragedModel`` over transformers' models."""
    import torch
    import transformers

    start = time.perf_counter()
    average = None
    for path in task["inputs"]:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if average is None:
            average = torch.optim.swa_utils.AveragedModel(model)  # a copy
        average.update_parameters(model)
    assert average is not None
    average.module.save_pretrained(task["output"])
    return {"inner_seconds": time.perf_counter() - start}


def loop(task: dict[str, Any]) -> dict[str, Any]:
    """A running sum over ``safetensors.torch.load_file``."""
    from safetensors.torch import save_file

    (weights,) = task["weights"].values()
    start = time.perf_counter()
    total = _weighted_sum(task["inputs"], weights)
    output = Path(task["output"])
    output.mkdir(parents=True)
    save_file(total, output / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(Path(task["inputs"][-1]) / "config.json", output)
    return {"inner_seconds": time.perf_counter() - start}


def loop_windows(task: dict[str, Any]) -> dict[str, Any]:
    """The same, merge after merge, nothing written."""
    start = time.perf_counter()
    for weights in task["weights"].values():
        _weighted_sum(task["inputs"], weights)
    return {"inner_seconds": time.perf_counter() - start, "merges": len(task["weights"])}


def _weighted_sum(inputs: list[str], weights: list[float]) -> dict[str, Any]:
    from safetensors.torch import load_file

    total: dict[str, Any] = {}
    for path, weight in zip(inputs, weights, strict=True):
        if weight:
            for name, tensor in load_file(Path(path) / "model.safetensors").items():
                if name in total:
                    total[name].add_(tensor, alpha=weight)
                else:
                    total[name] = weight * tensor
    return total


def versions(task: dict[str, Any]) -> dict[str, Any]:
    """Of what the peers are made of."""
    from importlib.metadata import version

    return {name: version(name) for name in ("mergekit", "torch", "transformers", "safetensors")}


TASKS = {t.__name__: t for t in (mergekit, mergekit_windows, averaged, loop, loop_windows, versions)}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(TASKS[asked["task"]](asked)), flush=True)
