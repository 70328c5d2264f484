"""Our side of ``benchmarks/train_step.py``: the training step of ``wsm train`` on one device.

Started by the benchmark as ``python train_step_jax.py SETTINGS_JSON``; for every line ``N`` on standard input it runs N
steps and prints one JSON line. After each step of a line ``N averages`` an EMA is updated, as ``wsm train`` does it.
"""

import dataclasses
import functools
import json
import os
import sys
from typing import Any

from train_step_torch import answer, timed  # beside this file; imports torch only when it runs

from wsm_jax.io import memory


def main() -> None:
    """Builds the model, warms up, then answers lines until standard input ends."""
    settings = json.loads(sys.argv[1])
    if threads := settings.get("threads"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    kept = settings.get("keep_heap", True) and memory.keep_heap()  # as wsm train begins
    import jax

    step, parameters, config, start_averages = build(settings)
    first = wait(step())
    wait(step())
    if settings.get("averages"):
        start_averages()
        wait(step("averages"))
    from wsm_jax.config import MODEL_FIELDS, left_open
    from wsm_jax.models import model

    opened = left_open(MODEL_FIELDS[config.family](**given(settings)))
    device = jax.devices()[0]
    answer(
        {
            "versions": {"jax": jax.__version__},
            "device": device.device_kind,
            "parameters": parameters,
            "flops_per_token": model.flops_per_token(config, parameters),
            "picked": {name: getattr(config, name) for name in opened},
            "heap_kept": kept,
            "first_loss": first,
        }
    )
    for line in sys.stdin:
        count, *what = line.split()
        answer(timed(functools.partial(step, *what), int(count), wait))


def wait(found: Any) -> float:
    """The loss, once all that a step makes is there."""
    import jax

    return float(jax.block_until_ready(found)[0])


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """What of ``settings`` are fields of the model."""
    from wsm_jax.config import MODEL_FIELDS
    from wsm_jax.models import model  # noqa: F401  # whose families register their fields

    names = {field.name for field in dataclasses.fields(MODEL_FIELDS[settings["family"]])}
    return {name: value for name, value in settings.items() if name in names}


def build(settings: dict[str, Any]) -> tuple[Any, int, Any, Any]:
    """A compiled step, the number of parameters, the model's fields, and what begins an EMA."""
    import jax
    import numpy as np

    from wsm_jax.config import MODEL_FIELDS, OptimizerConfig
    from wsm_jax.core import averages, schedules
    from wsm_jax.models import model
    from wsm_jax.parallel import sharding
    from wsm_jax.training import optimizer, tracking, train_state, train_step

    config: Any = MODEL_FIELDS[settings["family"]](**given(settings))
    rows = settings["batch_size"]
    built, mesh = model.build(config, rows), sharding.make_mesh(jax.devices()[:1])
    rule = optimizer.make(OptimizerConfig(), schedules.constant(1e-3, 10), built.leaves)
    state = train_state.initialise(built, rule, 0, mesh)
    abstract = train_state.abstract(built, rule, mesh)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, config.context + 1)).astype(np.int32)
    batch = sharding.global_batch(mesh, {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})
    compiled = train_step.jit_train_step(built, rule, mesh, abstract).lower(state, batch).compile()
    kept: dict[str, Any] = {"done": 0}

    def start_averages() -> None:
        rules = {"ema": averages.ema(0.999)}
        places = tracking.abstract(rules, abstract["params"])
        kept["averages"] = tracking.initialise(rules, state["params"], places)
        kept["update"] = tracking.compile_update(rules, abstract["params"], places)

    def step(what: str = "") -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        kept["done"] += 1
        if what:
            kept["averages"] = kept["update"](kept["averages"], state["params"], kept["done"])
        return metrics["loss"], state["step"], kept.get("averages")

    return step, model.parameter_count(state["params"]), built.config, start_averages


if __name__ == "__main__":
    main()
