"""Do merged experts share the work as evenly as decayed ones, and how is the router's bias to be merged? (Table 5)

    wsm sweep experiments/moe_balance.py                                     trains, and measures losses by document
    python -m experiments.moe_balance --sweep=runs/moe_balance/small         measures the balance of what is trained

The paper's merge has a lower largest violation of balance than its decay (0.545 against 0.601), and a slightly higher
loss. The bias of the router was set for the loads of the newest weights: a merge may average it like all else, keep
the last, or set it anew on some batches. ``balance`` measures the last checkpoint, the decay and the three merges on
the same held-out batches, for each seed; results/moe/balance.jsonl has a line each, balance.md the tables.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsm_jax import Run, load_tree, merge_checkpoints, merge_weights
from wsm_jax.data.pipeline import Batch, evaluation_batches
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import balance, evaluate, statistics
from wsm_jax.io import files, machine
from wsm_jax.merging.selection import select
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.reporting.tables import markdown_table, print_table
from wsm_jax.sweeps import Arm, Claim, Experiment, Measure, RunSpec, difference

COUNT, BATCHES = 16, 64  # checkpoints of the merge, as many as of the decay; batches for balance and for the bias
BIAS = "router/bias$"
LAST, DECAY, AVERAGED = "last checkpoint", "decay", "merge, bias averaged"
KEPT, RESET = "merge, bias of the last", f"merge, bias set on {BATCHES} batches"
FIGURES = ("max_violation", "min_violation", "lm_loss")


def get_sweep(scale: str = "small") -> Experiment:
    """A run at a constant rate with its merge, and a real decay over the last quarter of it; five seeds."""
    merge = Arm("constant", {"curve": "linear", "count": COUNT})
    return Experiment(
        name="moe_balance",
        title="A merge of experts beside a decay",
        config=f"configs/ling.py:{scale}",
        seeds=(0, 1, 2, 3, 4),
        runs={
            "constant": RunSpec(),
            "decay": RunSpec(
                {"schedule.name": "cooldown", "schedule.curve": "minus_sqrt"}, branch_from="constant@0.75run"
            ),
        },
        arms={LAST: Arm("constant"), DECAY: Arm("decay"), AVERAGED: merge},
        claims={
            "merging helps": Claim("The merge is better than the last checkpoint.", difference(AVERAGED, LAST)),
            "merge or decay": Claim(
                "The merge is better than the decay.",
                difference(AVERAGED, DECAY),
                primary=True,
                paper="its loss is slightly higher (Table 5)",
            ),
        },
        measure=Measure(validation_tokens=16384, test_tokens=65536),
    )


def measured(constant: Run, decay: Run, *, batches: int = BATCHES) -> dict[str, dict[str, float]]:
    """Arm -> violations and losses over ``batches`` of held-out text that both runs have in common.

    The bias is set anew on other text, of the validation split.
    """
    model, corpus = evaluate.model_and_data(constant)
    mesh, size = mesh_lib.like(constant.config.mesh), constant.config.batch_size

    def text(split: str) -> list[Batch]:
        stores = evaluate.held_out_stores(corpus, split)
        each = (evaluation_batches(s, split, context=model.config.context, batch_size=size) for s in stores)
        whole = (batch for batch in itertools.chain.from_iterable(each) if (batch["document"] >= 0).all())
        return list(itertools.islice(whole, batches))

    paths, weights = select(constant, COUNT).paths, merge_weights("linear", COUNT)
    averaged = merge_checkpoints(paths, weights)
    trees: dict[str, Any] = {
        LAST: load_tree(paths[-1]),
        DECAY: load_tree(decay.merge_stream / str(decay.plan.steps)),
        AVERAGED: averaged,
        KEPT: merge_checkpoints(paths, weights, rules=[(BIAS, "last")]),
        RESET: balance.rebalanced(model, averaged, text("validation"), mesh),
    }
    return {arm: balance.measured(model, params, text("test"), mesh) for arm, params in trees.items()}


def compared(records: Sequence[dict[str, Any]], reference: str = DECAY) -> list[list[str]]:
    """Rows of a table: every arm's figures, means over seeds, and each minus the reference's with its 95% interval."""
    rows = []
    for arm in dict.fromkeys(record["arm"] for record in records):
        row = [arm]
        for figure in FIGURES:
            own, other = ({r["seed"]: r[figure] for r in records if r["arm"] == name} for name in (arm, reference))
            found = statistics.estimate([own[seed] - other[seed] for seed in own])
            low, high = found.interval or (float("nan"),) * 2
            mean = sum(own.values()) / len(own)
            row.append(
                f"{mean:.3f}" + ("" if arm == reference else f" ({found.estimate:+.3f} [{low:+.3f}, {high:+.3f}])")
            )
        rows.append(row)
    return rows


def page(records: Sequence[dict[str, Any]]) -> str:
    """Both tables in Markdown, with where the figures are from."""
    first, seeds = records[0], {record["seed"] for record in records}
    lines = [
        "# Balance of experts",
        "",
        f"Means over {len(seeds)} seeds, with 95% intervals (t) of the differences; {first['batches']} batches of test "
        f"text; lm_loss in nats a token. Made by `python -m experiments.moe_balance` on {first['machine']}.",
    ]
    for reference in (DECAY, AVERAGED):
        table = markdown_table([["arm", *FIGURES], *compared(records, reference)])
        lines += ["", f"## Each minus {reference}", "", *table]
    return "\n".join(lines) + "\n"


def _seeds(sweep: Path) -> Iterator[tuple[int, Run, Run]]:
    """The seeds whose two runs are trained to their ends."""
    for folder in sorted(sweep.glob("seed*")):
        runs = [Run(folder / name) for name in ("constant", "decay") if (folder / name / "run.json").is_file()]
        if len(runs) == 2 and all((run.merge_stream / str(run.plan.steps)).is_dir() for run in runs):
            yield int(folder.name.removeprefix("seed")), runs[0], runs[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is trained, a seed at a time, and writes after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sweep", default="runs/moe_balance/small", help="folder of the runs")
    parser.add_argument("--output", default="results/moe/balance.jsonl")
    parser.add_argument("--batches", type=int, default=BATCHES, help="of held-out text")
    options = parser.parse_args(arguments)
    records: list[dict[str, Any]] = []
    for seed, constant, decay in _seeds(Path(options.sweep)):
        same = {"batches": options.batches, "config_id": constant.config_id, **machine.environment()}
        for arm, figures in measured(constant, decay, batches=options.batches).items():
            records.append({"seed": seed, "arm": arm, **figures, **same})
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        files.write_jsonl(Path(options.output), records)
        files.write_text(Path(options.output).with_suffix(".md"), page(records))
    if not records:
        sys.exit(str(UsageError(f"{options.sweep} has no finished pair of runs; wsm sweep experiments/moe_balance.py")))
    for reference in (DECAY, AVERAGED):
        print_table(["arm", *FIGURES], compared(records, reference), title=f"Balance (each minus that of {reference})")


if __name__ == "__main__":
    main()
