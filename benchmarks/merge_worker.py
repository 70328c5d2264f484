"""Our processes of ``benchmarks/merge.py``, and the baselines. Each does one task and prints one JSON line.

    python benchmarks/merge_worker.py '{"task": "read", "inputs": [...]}'

Seconds in the answer are of the task alone, without the start of the process.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import merge_inputs  # beside this file
import merge_process
import numpy as np

IN_MEMORY_BYTES = 10**9  # of inputs: far more than any cache of a processor, and it leaves room for the page cache
CURVE = "minus_sqrt"  # weights that are neither equal nor powers of two
ELEMENTS = 2**20
REPEATS = 7
Task = dict[str, Any]


def timed(work: Callable[..., Any], *arguments: Any) -> Task:
    """The answer of a task: how long ``work`` took."""
    start = time.perf_counter()
    work(*arguments)
    return {"inner_seconds": time.perf_counter() - start}


def read(task: Task) -> Task:
    """The plain sequential read of all inputs."""
    return timed(merge_process.read, task["inputs"])


def write(task: Task) -> Task:
    """The plain sequential write of as many bytes as a merge has, to the page cache as all contenders write."""
    block = memoryview(np.random.default_rng(0).bytes(merge_process.BLOCK_BYTES))
    size = 4 * merge_inputs.parameters(task["size"])

    def work() -> None:
        with open(task["output"], "wb", buffering=0) as opened:
            for begin in range(0, size, len(block)):
                opened.write(block[: size - begin])

    return timed(work)


def memory(task: Task) -> Task:
    """The multiply-add of the merge, jitted and donated, on checkpoints that are in memory; scaled to all inputs."""
    import jax
    import jax.numpy as jnp

    shapes = merge_inputs.shapes(task["size"], task["format"]).values()
    block = np.random.default_rng(0).normal(0.0, 0.02, merge_inputs.DRAWN).astype(np.float32)
    copies = max(1, min(task["count"], IN_MEMORY_BYTES // (4 * sum(int(np.prod(shape)) for shape in shapes))))
    trees = [[jnp.asarray(np.resize(block, shape)) for shape in shapes] for _ in range(copies)]
    add = jax.jit(lambda total, x, c: [t + c * y for t, y in zip(total, x, strict=True)], donate_argnums=0)
    total = jax.block_until_ready([jnp.zeros(shape) for shape in shapes])
    seconds = []
    for i in range(REPEATS + 2):
        start = time.perf_counter()
        total = jax.block_until_ready(add(total, trees[i % copies], jnp.float32(0.25)))
        seconds.append(time.perf_counter() - start)
    return {"inner_seconds": task["count"] * median(seconds[2:])}  # the first compiles, the second warms up


def engine(task: Task) -> Task:
    """``wsm_jax.merge_many``: nothing is written; every merged tree is dropped when it is complete."""
    import jax

    import wsm_jax

    def work(inputs: list[str], weights: dict[str, list[float]]) -> None:
        for _, tree in wsm_jax.merge_many(inputs, weights):
            jax.block_until_ready(tree)
            del tree  # before the next one is asked for

    work(task["small"], {"small": [0.5, 0.5]})
    return timed(work, task["inputs"], task["weights"])


def written(task: Task) -> Task:
    """``wsm_jax.merge_checkpoints`` with an output on disk."""
    import jax

    import wsm_jax

    def work(inputs: list[str], weights: list[float], output: str) -> None:
        jax.block_until_ready(wsm_jax.merge_checkpoints(inputs, weights, output=output))

    work(task["small"], [0.5, 0.5], task["output"] + "-small")
    return timed(work, task["inputs"], task["weights"]["uniform"], task["output"])


def error(task: Task) -> Task:
    """Largest difference of a merged safetensors folder from the float64 mean, over a sample of its tensors."""
    from safetensors import safe_open

    def tensor(folder: str, name: str) -> np.ndarray:
        for file in Path(folder).glob("*.safetensors"):
            with safe_open(file, framework="numpy") as tensors:
                if name in tensors.keys():
                    return tensors.get_tensor(name).astype(np.float64)
        raise KeyError(f"{folder} has no tensor {name}")

    worst = 0.0
    for name in ("transformer.wpe.weight", "transformer.h.1.mlp.c_fc.weight", "transformer.ln_f.bias"):
        exact = np.mean([tensor(path, name) for path in task["inputs"]], axis=0)
        worst = max(worst, float(np.abs(tensor(task["output"], name) - exact).max()))
    return {"max_error": worst}


def precision(task: Task) -> Task:
    """Relative rms error of ``wsm_jax.merge`` for float32 and bfloat16 inputs, and of a sum in bfloat16 throughout.

    Inputs are near one another, as checkpoints of one run are. All against the float64 sum of the same inputs:
    ``float32_result`` and ``same_dtype_result`` (rounded once, to the inputs' dtype) of ours, and ``same_dtype_sum``.
    """
    import jax.numpy as jnp

    import wsm_jax
    from wsm_jax.io import machine

    random = np.random.default_rng(0)
    start = random.normal(0.0, 0.02, ELEMENTS)
    rows = []
    for count in task["counts"]:
        weights = wsm_jax.merge_weights(CURVE, count)
        values = [start + random.normal(0.0, 0.002, ELEMENTS) for _ in range(count)]
        for dtype in ("float32", "bfloat16"):
            inputs = [jnp.asarray(x.astype(np.float32)).astype(dtype) for x in values]
            exact = sum(c * np.asarray(x, np.float64) for c, x in zip(weights, inputs, strict=True))
            trees = [{"x": x} for x in inputs]
            same = jnp.zeros(ELEMENTS, dtype)
            for c, x in zip(weights, inputs, strict=True):
                same = same + jnp.asarray(c, dtype) * x
            found = {
                "float32_result": wsm_jax.merge(trees, weights, dtype=jnp.float32)["x"],
                "same_dtype_result": wsm_jax.merge(trees, weights)["x"],
                "same_dtype_sum": same,
            }
            errors = {name: _relative(x, exact) for name, x in found.items()}
            rows.append({"count": count, "dtype": dtype, **errors})
    return {"rows": rows, "environment": machine.environment()}


def _relative(got: Any, exact: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(got, np.float64) - exact) ** 2) / np.mean(exact**2)))


TASKS = {task.__name__: task for task in (read, write, memory, engine, written, error, precision)}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(TASKS[asked["task"]](asked)), flush=True)
