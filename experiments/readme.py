"""Writes the figures of the README and of docs/performance.md from committed result files: none is typed by hand.

    python -m experiments.readme            (after copying results; a test checks that both are up to date)

Reads results/demo/seed-*.json (report/table.json of each demo run), results/demo/seconds-*.json (its stages) and
benchmarks/results/*.jsonl.
"""

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from wsm_jax.errors import ended
from wsm_jax.evaluation.statistics import estimate
from wsm_jax.io.files import read_json, read_jsonl, write_text
from wsm_jax.reporting.tables import markdown_table

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "results" / "demo"
PAGES = ("README.md", "docs/performance.md")


def demo_section(results: list[dict[str, Any]], seconds: list[dict[str, float]]) -> list[str]:
    """Table over seeds, what it shows in words, figures and provenance."""
    first = results[0]
    keys = [row["name"] if row["group"] != "chosen" else "chosen" for row in first["rows"]]
    rows = [
        ["", "window (steps)", "test loss, mean", "minus raw, mean ± 95%", "each seed", "extra tokens", "extra seconds"]
    ]
    for index, key in enumerate(keys):
        each = [result["rows"][index] for result in results]
        found = estimate([row["difference"] for row in each])  # over seeds alone
        assert found.interval is not None
        mean, half = found.estimate, found.interval[1] - found.estimate
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
    tokens, interval_steps = first["rows"][0]["tokens"], first["interval"]
    took = statistics.fmean(sum(stages.values()) for stages in seconds)
    return [
        f"{first['parameters']:,} parameters, {tokens:,} tokens, test loss in nats a token, {len(results)} seeds "
        f"({first['machine']}; {took / 60:.1f} minutes a seed; Python {first['python']}, "
        f"jax {first['versions']['jax']}; "
        f"config {', '.join(result['config_hash'] for result in results)}; data {first['data_hash'][:12]}):",
        "",
        *markdown_table(rows),
        "",
        *shares(results),
        f"The window of {(count := first['count_at_equal_window'])} checkpoints × {interval_steps} steps is as long as "
        f"the real decay; but {count} checkpoints span {count - 1} intervals, so the emulated decay stops one interval "
        "short of its end. The ± is over seeds; those over documents are in [results/demo](results/demo) for each "
        "seed. Chosen, by seed: "
        + ", ".join(f"{r['chosen']['curve']} × {r['chosen']['count']}" for r in results)
        + ".",
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
        ratios = [[a / b for a, b in zip(rates, p["tokens_per_second"], strict=True)] for p in peers]
        rows.append(
            [
                record["variant"],
                f"{statistics.median(rates):,.0f}",
                f"{statistics.median(record['cpu_seconds_per_step']):.2f}",
                *(f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios),
            ]
        )
    shape, machine = records[0]["shape"], records[0]["machine"]
    return [
        f"Training step of a GPT with {shape['layers']} layers, width {shape['d_model']}, context {shape['context']}, "
        f"batch {shape['batch_size']}, vocabulary {shape['vocab_size']:,}, float32, on {shape['threads']} cores of "
        f"{machine['cpu']}, {len(records[0]['tokens_per_second'])} interleaved rounds "
        "(`python benchmarks/train_step.py --peer_python=…` at commit 6d610bb, before the fast settings were the "
        "default; [records](../benchmarks/results/train_step.jsonl)), "
        "medians; × is the median of the ratios within the rounds, and from the lowest to the highest:",
        "",
        *markdown_table(rows),
    ]


def families_section(records: list[dict[str, Any]]) -> list[str]:
    """Training speed of every dense family as the default is, beside compiled PyTorch."""
    rows = [["family", "tokens/s", "PyTorch compiled, tokens/s", "CPU-s a step", "its CPU-s a step", "×"]]
    for family in dict.fromkeys(record["family"] for record in records):
        own, peer = (record for record in records if record["family"] == family)
        ratios = [a / b for a, b in zip(own["tokens_per_second"], peer["tokens_per_second"], strict=True)]
        rates, costs = (
            [statistics.median(record[of]) for record in (own, peer)]
            for of in ("tokens_per_second", "cpu_seconds_per_step")
        )
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([family, *(f"{rate:,.0f}" for rate in rates), *(f"{cost:.2f}" for cost in costs), spread])
    shape, machine = records[0]["shape"], records[0]["machine"]
    return [
        f"Training step with {shape['layers']} layers, width {shape['d_model']}, context {shape['context']}, batch "
        f"{shape['batch_size']}, vocabulary {shape['vocab_size']:,}, float32, as `wsm train` runs it by default, "
        f"beside the same model of transformers under `torch.compile`, on {shape['threads']} cores of "
        f"{machine['cpu']}; medians of {len(records[0]['tokens_per_second'])} interleaved rounds, × from the lowest to "
        "the highest "
        "(`python benchmarks/train_step.py --peer_python=…`; "
        "[records](../benchmarks/results/train_step_families.jsonl)):",
        "",
        *markdown_table(rows),
    ]


def generation_section(records: list[dict[str, Any]]) -> list[str]:
    """Generation beside transformers: whole answers, prompt included."""
    rows = [["model", "prompts at a time", "tokens/s", "transformers, tokens/s", "×"]]
    for model, batch in dict.fromkeys((record["model"], record["batch"]) for record in records):
        found = [record for record in records if (record["model"], record["batch"]) == (model, batch)]
        both = [record["tokens_per_second"] for record in found]
        ratios = [a / b for a, b in zip(*both, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([model, str(batch), *(f"{statistics.median(rates):.1f}" for rates in both), spread])
    first = records[0]
    return [
        f"Greedy generation of {first['new_tokens']} tokens after prompts of {first['prompt']}, float32, random "
        f"weights, on {first['threads']} cores of {first['machine']['cpu']}; medians of "
        f"{len(first['tokens_per_second'])} interleaved rounds (`python benchmarks/generate.py --peer_python=…`; "
        "[records](../results/generate/speed.jsonl)):",
        "",
        *markdown_table(rows),
    ]


def averages_section(runs: list[list[dict[str, Any]]]) -> list[str]:
    """What each average adds to a training step, by run of the benchmark, and what it holds, by model."""
    firsts = [records[0] for records in runs]
    models = list(dict.fromkeys(first["model"] for first in firsts))
    found = [{record["variant"]: record for record in records} for records in runs]
    heads = [f"{_processor(r)}, {_size(r)} at {r['tokens_per_step']:,} tokens a step: × none" for r in firsts]
    heads += [f"MB held at {_size(next(r for r in firsts if r['model'] == model))}" for model in models]
    rows = [["average", *heads]]
    for name in found[0]:
        if name == "none":
            continue
        ratios = [by_name[name]["ratios"] for by_name in found]
        cells = [f"{statistics.median(r):.3f} ({min(r):.2f} to {max(r):.2f})" for r in ratios]
        held = [next(by_name[name] for by_name in found if by_name[name]["model"] == model) for model in models]
        cells += [f"{record['bytes_held'] / 1e6:,.1f}" for record in held]
        rows.append(["none, measured again" if name == "none again" else name, *cells])
    rounds = ", ".join(str(len(first["ratios"])) for first in firsts)
    commands = [re.sub(r" --output=\S+", "", f"python {first['benchmark']}") for first in firsts]
    machines = "; ".join(dict.fromkeys(f"{r['machine']}, jax {r['versions']['jax']}" for r in firsts))
    return [
        f"What an average adds to a training step (medians of {rounds} interleaved rounds) and the memory it holds "
        f"(`{'`, `'.join(commands)}`; {machines}); in parentheses from the lowest round to the highest; *none, "
        "measured again* is the noise. An average reads and writes its copies of the parameters whatever the batch is, "
        "so the ratio should fall with the tokens in a step; no model was measured at two batches.",
        "",
        *markdown_table(rows),
    ]


def _processor(record: dict[str, Any]) -> str:
    """The accelerator of a record, or how many cores."""
    if record["platform"] == "cpu":
        return f"{re.findall(r'[0-9]+ (?:CPU )?cores', record['machine'])[-1]}".replace("CPU ", "")
    return record["machine"].partition(",")[0].partition(" x ")[2].removeprefix("NVIDIA ").split()[0]


def _size(record: dict[str, Any]) -> str:
    return f"{record['parameters'] / 1e6:.1f}M" if record["parameters"] < 10e6 else f"{record['parameters'] / 1e6:.0f}M"


def merge_section(records: list[dict[str, Any]]) -> list[str]:
    """Merging beside its peers: whole processes, seconds and peak memory; and what was asked for and is not met."""
    merges = [r for r in records if r["kind"] == "merge"]
    contenders = ("wsm merge", "mergekit", "AveragedModel", "plain loop")
    rows = [["inputs, float32", "page cache", *(f"{name}, s (GB)" for name in contenders), "rounds", "processor"]]
    cases = dict.fromkeys((r["size"], r["count"], r["cache"]) for r in merges if r["contender"] in contenders[1:])
    for size, count, cache in cases:
        key = {"format": "safetensors", "size": size, "count": count, "cache": cache}
        found = {r["contender"]: r for r in merges if key.items() <= r.items()}
        cells = [
            f"{statistics.median(r['seconds']):.1f} ({max(r['peak_rss']) / 1e9:.2f})" if (r := found.get(name)) else "–"
            for name in contenders
        ]
        own = found["wsm merge"]
        processor = f"{own['machine']['cores']} cores of {own['machine']['cpu']}"
        rows.append([f"{size} × {count}", cache, *cells, str(len(own["seconds"])), processor])
    return [
        "Merging safetensors folders, whole processes with the output written, seconds (peak resident memory), medians "
        "of interleaved rounds (`python benchmarks/merge.py --peer_python=…`; "
        "[records](../benchmarks/results/merge.jsonl), [figure](../benchmarks/results/merge.png)):",
        "",
        *markdown_table(rows),
    ]


def render(text: str) -> str:
    """A page's text with its generated sections made anew."""
    results = [read_json(path) for path in sorted(DEMO.glob("seed-*.json"))]
    seconds = [read_json(path) for path in sorted(DEMO.glob("seconds-*.json"))]
    text = _replace(text, "demo", demo_section(results, seconds))
    benchmarks = ROOT / "benchmarks" / "results"
    for name, section, file in (
        ("families", families_section, benchmarks / "train_step_families.jsonl"),
        ("generation", generation_section, ROOT / "results" / "generate" / "speed.jsonl"),
        ("speed", speed_section, benchmarks / "train_step.jsonl"),
        ("merging", merge_section, benchmarks / "merge.jsonl"),
    ):
        text = _replace(text, name, section(read_jsonl(file)))
    names = [f"averaging-{model}{platform}.jsonl" for platform in ("-gpu", "") for model in ("tiny", "gpt2_small")]
    averages = [records for name in names if (records := read_jsonl(benchmarks / name))]
    return _replace(text, "averages", averages_section(averages))


def _replace(text: str, name: str, lines: list[str]) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    return re.sub(f"{begin}.*?{end}", lambda _: "\n".join([begin, *lines, end]), text, flags=re.DOTALL)


def main() -> int:
    """The command."""
    argparse.ArgumentParser("python -m experiments.readme", description=(__doc__ or "").split("\n")[0]).parse_args()
    for page in PAGES:
        write_text(ROOT / page, render((ROOT / page).read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(ended("readme", main))
