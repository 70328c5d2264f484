"""Writes the README's figures of speed and of the demo from committed result files, so that none is typed by hand.

    python -m experiments.readme            (after copying results; a test checks that the README is up to date)

Reads results/demo/seed-*.json (report/table.json of each demo run), results/demo/seconds-*.json (its stages) and
benchmarks/results/train_step.jsonl.
"""

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

from wsm_jax.report import markdown_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "demo"


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95% interval (Student's t over seeds); infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def demo_section(results: list[dict[str, Any]], seconds: list[dict[str, float]]) -> list[str]:
    """Table over seeds, what it shows in words, figures and provenance."""
    first = results[0]
    keys = [row["name"] if row["group"] != "chosen" else "chosen" for row in first["rows"]]
    rows = [
        ["", "window (steps)", "test loss, mean", "minus raw, mean ± 95%", "each seed", "extra tokens", "extra seconds"]
    ]
    for index, key in enumerate(keys):
        each = [result["rows"][index] for result in results]
        mean, half = interval([row["difference"] for row in each])
        chosen = each[0]["group"] == "chosen"
        windows = sorted({row["window"] for row in each})
        rows.append(
            [
                "merge, curve and window chosen on validation" if chosen else key,
                "–" if not windows[-1] else " / ".join(f"{window:,}" for window in windows),
                f"{statistics.fmean(row['test']['loss'] for row in each):.4f}",
                "–" if index == 0 else f"{mean:+.4f} ± {half:.4f}",
                "–" if index == 0 else " ".join(f"{row['difference']:+.3f}" for row in each),
                f"{each[0]['extra_tokens']:,}",
                f"{statistics.fmean(row['seconds'] for row in each):.1f}",
            ]
        )
    steps, interval_steps = first["rows"][0]["tokens"], first["interval"]
    took = statistics.fmean(sum(stages.values()) for stages in seconds)
    return [
        f"{first['parameters']:,} parameters, {steps:,} tokens, test loss in nats a token, {len(results)} seeds "
        f"({first['machine']}; {took / 60:.1f} minutes a seed; Python {first['python']}, "
        f"jax {first['versions']['jax']}; "
        f"config {', '.join(result['config_hash'] for result in results)}; data {first['data_hash'][:12]}):",
        "",
        *markdown_table(rows),
        "",
        *shares(results),
        f"The window of {first['count_at_equal_window']} checkpoints × {interval_steps} steps is as long as the real "
        "decay; the oldest checkpoint lies one interval less before the newest, so the emulated decay stops one "
        "interval early. The ± is over seeds; those over documents are in [results/demo](results/demo) for each seed. "
        "Chosen, by seed: " + ", ".join(f"{r['chosen']['curve']} × {r['chosen']['count']}" for r in results) + ".",
        "",
        "![Loss of the constant-rate run, its merge along the run, and three real decays](results/demo/loss.png)",
        "",
        "Seed 0: the merged curve is what an anneal would give at that point of the run, had it been done.",
    ]


def shares(results: list[dict[str, Any]]) -> list[str]:
    """What part of the real decays' gain on test the merges recover, seed by seed."""
    curves = [row["name"].split()[-1] for row in results[0]["rows"] if row["group"] == "decay"]
    pairs = []
    for curve in curves:
        # The rows of one curve: the merge at the decay's window first, the real decay last.
        rows = [[row["difference"] for row in r["rows"] if row["name"].endswith(f" {curve}")] for r in results]
        pairs.append(f"{curve} {' '.join(f'{own[0] / own[-1]:.0%}' for own in rows)}")
    best = [min(row["difference"] for row in r["rows"] if row["group"] == "decay") for r in results]
    parts = []
    for group, words in {
        "merge": "the best merge at its window (picked on test)",
        "chosen": "the one chosen on validation",
    }.items():
        own = [min(row["difference"] for row in r["rows"] if row["group"] == group) for r in results]
        parts.append(f"{words} {' '.join(f'{a / b:.0%}' for a, b in zip(own, best, strict=True))}")
    return [
        f"* Of each real decay's gain, the merge that emulates it recovers (by seed): {'; '.join(pairs)}.",
        f"* Of the best real decay's gain: {'; '.join(parts)}.",
        "",
    ]


def speed_section(records: list[dict[str, Any]]) -> list[str]:
    """Training speed beside the peer: medians over interleaved rounds, ratios within a round."""
    peers = [record for record in records if record["variant"].startswith("PyTorch")]
    rows = [["training step", "tokens/s", "CPU-s a step", *(f"× {peer['variant']}" for peer in peers)]]
    for record in records:
        rates = record["tokens_per_second"]
        ratios = (statistics.median(a / b for a, b in zip(rates, p["tokens_per_second"], strict=True)) for p in peers)
        rows.append(
            [
                record["variant"],
                f"{statistics.median(rates):,.0f}",
                f"{statistics.median(record['cpu_seconds_per_step']):.2f}",
                *(f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    shape, machine = records[0]["shape"], records[0]["machine"]
    return [
        f"Training step of a GPT with {shape['layers']} layers, width {shape['d_model']}, context {shape['context']}, "
        f"batch {shape['batch_size']}, vocabulary {shape['vocab_size']:,}, float32, on {shape['threads']} cores of "
        f"{machine['cpu']}, {len(records[0]['tokens_per_second'])} interleaved rounds "
        "(`python benchmarks/train_step.py --peer_python=…`; [records](benchmarks/results/train_step.jsonl)), medians:",
        "",
        *markdown_table(rows),
    ]


def render(text: str) -> str:
    """The README's text with both sections made anew."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("seed-*.json"))]
    seconds = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("seconds-*.json"))]
    lines = (ROOT / "benchmarks" / "results" / "train_step.jsonl").read_text().splitlines()
    text = _replace(text, "demo", demo_section(results, seconds))
    return _replace(text, "speed", speed_section([json.loads(line) for line in lines]))


def _replace(text: str, name: str, lines: list[str]) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    return re.sub(f"{begin}.*?{end}", lambda _: "\n".join([begin, *lines, end]), text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
