"""Our processes of ``benchmarks/merge.py``, and the two baselines. Each does one task and prints one JSON line.

    python benchmarks/merge_worker.py '{"task": "read", "inputs": [...]}'

Seconds in the answer are of the task alone, without the start of the process.
"""

import json
import sys
import time
from statistics import median
from typing import Any

import merge_inputs  # beside this file
import merge_process
import numpy as np

IN_MEMORY_BYTES = 10**9  # of inputs: far more than any cache of a processor, and it leaves room for the page cache
CURVE = "minus_sqrt"  # weights that are neither equal nor powers of two
ELEMENTS = 2**20


def read(task: dict[str, Any]) -> dict[str, Any]:
    """The plain sequential read of all inputs."""
    start = time.perf_counter()
    total = merge_process.read(task["inputs"])
    return {"inner_seconds": time.perf_counter() - start, "bytes": total}


def write(task: dict[str, Any]) -> dict[str, Any]:
    """The plain sequential write of as many bytes as a merge has, to the page cache as all contenders write."""
    block = memoryview(np.random.default_rng(0).bytes(merge_process.BLOCK_BYTES))
    start = time.perf_counter()
    with open(task["output"], "wb", buffering=0) as opened:
        for begin in range(0, task["bytes"], len(block)):
            opened.write(block[: task["bytes"] - begin])
    return {"inner_seconds": time.perf_counter() - start, "bytes": task["bytes"]}


def memory(task: dict[str, Any]) -> dict[str, Any]:
    """The multiply-add of the merge, jitted and donated, on checkpoints that are in memory; scaled to all inputs."""
    import jax
    import jax.numpy as jnp

    shapes = merge_inputs.shapes(task["size"], task["format"])
    block = np.random.default_rng(0).normal(0.0, 0.02, merge_inputs.DRAWN).astype(np.float32)
    size = 4 * sum(int(np.prod(shape)) for shape in shapes)
    copies = max(1, min(task["count"], IN_MEMORY_BYTES // size))
    trees = [[jnp.asarray(np.resize(block, shape)) for shape in shapes] for _ in range(copies)]
    add = jax.jit(lambda total, x, c: [t + c * y for t, y in zip(total, x, strict=True)], donate_argnums=0)
    total = jax.block_until_ready([jnp.zeros(shape) for shape in shapes])
    seconds = []
    for i in range(task["repeats"] + 2):
        start = time.perf_counter()
        total = jax.block_until_ready(add(total, trees[i % copies], jnp.float32(0.25)))
        seconds.append(time.perf_counter() - start)
    return {"inner_seconds": task["count"] * median(seconds[2:])}  # the first compiles, the second warms up


def engine(task: dict[str, Any]) -> dict[str, Any]:
    """``wsm_jax.merge_many``: nothing is written; every merged tree is dropped when it is complete."""
    import jax

    import wsm_jax

    def run(inputs: list[str], weights: dict[str, list[float]]) -> int:
        merged = wsm_jax.merge_many(inputs, weights)
        count = 0
        for _, tree in merged:
            jax.block_until_ready(tree)
            del tree  # before the next one is asked for
            count += 1
        return count

    run(task["small"], {"small": [1 / len(task["small"])] * len(task["small"])})
    start = time.perf_counter()
    count = run(task["inputs"], task["weights"])
    return {"inner_seconds": time.perf_counter() - start, "merges": count}


def written(task: dict[str, Any]) -> dict[str, Any]:
    """``wsm_jax.merge_checkpoints`` with an output on disk."""
    import jax

    import wsm_jax

    def run(inputs: list[str], weights: list[float], output: str) -> None:
        jax.block_until_ready(wsm_jax.merge_checkpoints(inputs, weights, output=output))

    run(task["small"], [1 / len(task["small"])] * len(task["small"]), task["output"] + "-small")
    (weights,) = task["weights"].values()
    start = time.perf_counter()
    run(task["inputs"], weights, task["output"])
    return {"inner_seconds": time.perf_counter() - start}


def error(task: dict[str, Any]) -> dict[str, Any]:
    """Largest difference of a merged safetensors folder from the float64 mean, over a sample of its tensors."""
    from pathlib import Path

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


def precision(task: dict[str, Any]) -> dict[str, Any]:
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
            rows.append(
                {
                    "count": count,
                    "dtype": dtype,
                    "float32_result": _relative(wsm_jax.merge(trees, weights, dtype=jnp.float32)["x"], exact),
                    "same_dtype_result": _relative(wsm_jax.merge(trees, weights)["x"], exact),
                    "same_dtype_sum": _relative(same, exact),
                }
            )
    return {"rows": rows, "environment": machine.environment()}


def _relative(got: Any, exact: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(got, np.float64) - exact) ** 2) / np.mean(exact**2)))


TASKS = {task.__name__: task for task in (read, write, memory, engine, written, error, precision)}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(TASKS[asked["task"]](asked)), flush=True)
