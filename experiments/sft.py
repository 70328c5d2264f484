"""Does the merge make a better start for fine-tuning than the real decay, or than no decay? (Table 2 of the paper)

    wsm sweep experiments/sft.py --results=results/sft/standard --parallel=2

One run at a constant rate; its last checkpoint, its merge over the last tenth and a real decay over that tenth are each
fine-tuned for one epoch of instructions, at a constant and at a linearly decayed rate, each at four peak rates of
which the one with the lowest validation loss of responses is taken; and each of these is measured as it ends and merged
over its last half. The WSO paper (2603.16127) asks whether the base that was not decayed is the better start. Losses
are those of held-out responses given their prompts, in bits per byte, and of gold answers given their questions. Ours,
not the paper's: models of 0.27M parameters on half of the main experiment's text, at a rate and weight decay that were
chosen by hand (BASE, the same for all bases), and losses where it has benchmarks.
"""

import dataclasses
import gzip
import itertools
import json
import os
from pathlib import Path
from typing import Any

from configs.standard import SIZES
from experiments import text
from experiments.parts import decay, window
from wsm_jax.config import DataConfig
from wsm_jax.data import tokens
from wsm_jax.data.packing import PackedRows
from wsm_jax.errors import UsageError
from wsm_jax.sweeps import Arm, Choice, Claim, Experiment, RunSpec, difference

BASE = {"optimizer.peak_lr": 4e-3, "optimizer.weight_decay": 0.03}
LENGTH = 0.5  # of the main experiment's runs
RATES = (5e-4, 1.5e-3, 4e-3, 1e-2)
SCHEDULES = {"constant": {"schedule.name": "constant"}, "decayed": {"schedule.name": "wsd", "schedule.decay": "0.9run"}}
WARMUP = {"schedule.warmup": "0.05run", "checkpoint.merge_interval": "0.05run", "evaluation.interval": ""}
BASES = ("last", "merge", "decay")
MERGED = {"curve": "linear", "window": "0.5run"}
CHARACTERS = {"standard": 350, "tiny": 110}  # of a prompt and its response, which fit the context then
CONTEXT: dict[str, dict[str, int]] = {"standard": {}, "tiny": {"model.context": 64}}
DOMAIN = "instructions"
END = "<|endoftext|>"  # which the file has behind each response, and we put there ourselves


def get_sweep(scale: str = "standard") -> Experiment:
    """The experiment at a scale; UsageError for another, or where the text is not there."""
    if scale not in SIZES:
        raise UsageError(f"scale {scale!r}: choose {', '.join(SIZES)}")
    size, words, source = SIZES[scale], text.text(scale), f"chat:{instructions(scale)}"
    trained = {**BASE, **words.stable_only, "duration": f"{round(LENGTH * size.steps)}steps"}
    runs = {
        "stable": RunSpec(trained),
        "decay": decay("stable", 0.1, "linear", trained, size, length=LENGTH),
    }
    arms = {
        "last": Arm("stable"),
        "merge": Arm("stable", window(0.1, size, "linear", length=LENGTH, snapshot="point")),
        "decay": Arm("decay"),
    }
    choices: dict[str, Choice] = {}
    learnt = {**BASE, **WARMUP, "data.source": source, "data.tokenizer": words.stable_only["data.tokenizer"]}
    learnt["duration"] = (
        f"{_steps(source, learnt, CONTEXT[scale].get('model.context', size.context), size.batch_size)}steps"
    )
    for base, (schedule, settings) in itertools.product(BASES, SCHEDULES.items()):
        name = f"{base}, {schedule}"
        tries = {rate: f"{name} {rate:g}" for rate in RATES}
        for rate, run in tries.items():
            runs[run] = RunSpec({**learnt, **settings, "optimizer.peak_lr": rate}, params_from=base)
            arms |= {run: Arm(run), f"{run}, merged": Arm(run, {**MERGED, "snapshot": "point"})}
        choices[name] = Choice(list(tries.values()), (DOMAIN,))
        choices[f"{name}, merged"] = Choice([f"{run}, merged" for run in tries.values()], (DOMAIN,))
    return Experiment(
        name="sft",
        title="Fine-tuning the last checkpoint, the merge and the real decay",
        config=f"configs/standard.py:{scale}",
        runs=runs,
        arms=arms,
        seeds=(0, 1, 2, 3, 4),
        settings=CONTEXT[scale],
        choices=choices,
        claims=_claims(),
        measure=dataclasses.replace(words.measure, test_tokens=50_000, sources=source),
        about=__doc__ or "",
    )


def _claims() -> dict[str, Claim]:
    """Primary: the merge as a start, and the base that was not decayed; the rest is exploratory."""
    domains = (DOMAIN,)
    start = "Fine-tuned at a {0} rate, {1} is a better start than {2}."
    found = {
        f"{a} over {b}, {rate}": Claim(
            start.format(rate, a, b),
            difference(f"{a}, {rate}", f"{b}, {rate}", domains),
            primary=rate == "decayed",
            paper="64.07 against 62.90 points after 5 epochs (Table 2)" if a == "merge" else "",
        )
        for a, b in (("merge", "decay"), ("last", "decay"))
        for rate in SCHEDULES
    }
    for base in BASES:
        statement = f"From {base}: a constant rate and then a merge is better than a decayed rate."
        statistic = difference(f"{base}, constant, merged", f"{base}, decayed", domains)
        found[f"merge or decay from {base}"] = Claim(statement, statistic)
    return found


def instructions(scale: str) -> Path:
    """The conversations of a scale, made now where they are not there, of $WSM_EXPERIMENT_DATA/sft/t0_12k.jsonl.gz.

    Raises:
      UsageError: that file is not there.
    """
    place = Path("runs") / "corpus" / scale / "sft" / f"{DOMAIN}.jsonl.gz"
    if place.is_file():
        return place
    data = Path(os.environ.get("WSM_EXPERIMENT_DATA", "../shared/data")) / "sft" / "t0_12k.jsonl.gz"
    if not data.is_file():
        raise UsageError(f"{data} is not there; JSON lines with prompt and completion (tasks of T0)")
    with gzip.open(data, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    pairs = [(record["prompt"], record["completion"].removesuffix(END)) for record in records]
    short = [pair for pair in pairs if pair[1] and sum(map(len, pair)) <= CHARACTERS[scale]]
    place.parent.mkdir(parents=True, exist_ok=True)
    made = place.with_suffix(".part")
    with gzip.open(made, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in short)
    made.replace(place)  # whole or not at all
    return place


def _steps(source: str, settings: dict[str, Any], context: int, batch_size: int) -> int:
    """Updates of one epoch at seed 0, rounded up to a multiple of 20, so that checkpoints divide a run and its half."""
    data = DataConfig(source, tokenizer=settings["data.tokenizer"], validation_fraction=0.03, test_fraction=0.12)
    rows = PackedRows(tokens.prepare(data).stable[0][0], context, seed=0).rows(1)
    return -(-rows // (20 * batch_size)) * 20
