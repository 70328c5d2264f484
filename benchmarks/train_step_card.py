"""``benchmarks/train_step.py --device=gpu``: models for one card, each contender alone on it, within a time limit."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from train_step_cases import OURS, PEER, Shape, gpu_shapes, gpu_variants  # beside this file
from train_step_process import Contender, Failed, Variant

from wsm_jax.parallel import chips
from wsm_jax.reporting.tables import print_table

Record = dict[str, Any]
ROUNDS = 5
SECONDS = 1.5  # of a round, about
LEAST = 15.0  # seconds without which no contender is started


def measure(minutes: float, peer_python: str, toy: bool, write: Callable[[list[Record]], None]) -> list[Record]:
    """A record for every model and contender that the time allows; ``write`` is given all after each.

    The defaults and their peers come first, then the variants, so that a slow card leaves out what matters least.

    Args:
      minutes: for everything.
      peer_python: an interpreter with torch and transformers; empty = ours only.
      toy: small models, on the CPU.
      write: told the records.
    """
    end = time.monotonic() + 60 * minutes
    pairs = [(name, shape, v) for name, shape in gpu_shapes(toy).items() for v in gpu_variants(shape, peer_python)]
    pairs.sort(key=lambda pair: pair[2].name not in (OURS, PEER))
    records: list[Record] = []
    for number, (model, shape, variant) in enumerate(pairs):
        left = end - time.monotonic()
        waiting = sum(v.name in (OURS, PEER) for _, _, v in pairs[number:]) or 1
        # What others leave may be used, but no contender takes the time of those that matter more.
        limit = min(left - 5, 2 * left / (waiting + 1))
        if limit < LEAST:
            print(f"no time left for {model}: {variant.name}", flush=True)
            continue
        print(f"{model}: {variant.name} (at most {limit:.0f} s)", flush=True)
        try:
            found = _one(shape, variant, limit)
        except Failed as error:
            print(error, flush=True)
            found = {"failed": str(error)}
        records.append(
            {"model": model, "variant": variant.name, "shape": shape, "environment": variant.environment} | found
        )
        _add_rates(records)
        write(records)
    return records


def _one(shape: Shape, variant: Variant, limit: float) -> Record:
    """What one contender answers: seconds a step of each round, and with averages where it has them."""
    end = time.monotonic() + limit
    contender = Contender(variant, limit)
    try:
        trial = contender.run(2, limit=end - time.monotonic())["seconds"] / 2
        steps = max(1, round(SECONDS / trial))
        kinds = ["", "averages"] if "averages" in variant.command[-1] else [""]
        rounds: dict[str, list[float]] = {kind: [] for kind in kinds}
        while len(rounds[""]) < ROUNDS and end - time.monotonic() > 3 * len(kinds) * steps * trial:
            for kind, times in rounds.items():
                times.append(contender.run(steps, kind, end - time.monotonic())["seconds"] / steps)
        found = {"seconds_per_step": rounds[""] or [trial], "steps_per_round": steps, **contender.facts}
        if with_averages := rounds.get("averages"):
            ratios = [a / b for a, b in zip(with_averages, rounds[""], strict=True)]
            found |= {"seconds_with_averages": with_averages, "averages_ratio": median(ratios)}
        return found
    finally:
        contender.close()


def _add_rates(records: list[Record]) -> None:
    """Tokens/s, model TFLOP/s and MFU of all; the FLOPs of a token are those that ours counts, for the peer too."""
    flops = {r["model"]: r["flops_per_token"] for r in records if "flops_per_token" in r}
    for record in records:
        if "seconds_per_step" not in record or record["model"] not in flops:
            continue
        shape = record["shape"]
        rate = shape["batch_size"] * shape["context"] / median(record["seconds_per_step"])
        record["tokens_per_second"] = rate
        record["tflops_per_second"] = rate * flops[record["model"]] / 1e12
        if peak := chips.peak_of(record["device"]):
            record["mfu"] = rate * flops[record["model"]] / peak


def print_summary(records: list[Record]) -> None:
    """A line for every contender: its rate beside the peer's of the same model."""
    peers = {r["model"]: r["tokens_per_second"] for r in records if r["variant"] == PEER and "tokens_per_second" in r}
    header = ["model", "variant", "ms a step", "tokens/s", "model TFLOP/s", "MFU", f"x {PEER}", "with averages"]
    rows = []
    for r in records:
        if "tokens_per_second" not in r:
            rows.append([r["model"], r["variant"], *["failed"], *[""] * (len(header) - 3)])
            continue
        rows.append(
            [
                r["model"],
                r["variant"],
                f"{1e3 * median(r['seconds_per_step']):.1f}",
                f"{r['tokens_per_second']:,.0f}",
                f"{r['tflops_per_second']:.4g}",
                f"{r['mfu']:.1%}" if "mfu" in r else "",
                f"{r['tokens_per_second'] / peers[r['model']]:.2f}" if r["model"] in peers else "",
                f"{r['averages_ratio']:.3f}" if "averages_ratio" in r else "",
            ]
        )
    print_table(header, rows, title=f"Training step on {next((r['device'] for r in records if 'device' in r), '?')}")
