"""``wsm weights``: the merge weights of a decay curve or an average."""

import argparse
import json

from wsm_jax.cli import merge
from wsm_jax.cli.numbers import whole
from wsm_jax.errors import UsageError
from wsm_jax.reporting.tables import print_table

MOST_WEIGHTS = 10**5


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("--curve", required=True, metavar="C", help=f"{merge.CURVES} (best:N only with wsm merge --run)")
    sub.add_argument("--count", required=True, type=whole, metavar="N", help="checkpoints")
    sub.add_argument("--learning_rate", type=float, metavar="LR", help="for the weight-decay-aware form")
    sub.add_argument("--weight_decay", type=float, metavar="WD", help="AdamW's decay (default: none, the plain form)")
    sub.add_argument("--steps_per_interval", type=whole, metavar="T", help="updates between checkpoints")
    sub.add_argument("--extrapolate", type=float, metavar="A", help="go on past the merge, as wsm merge does")
    sub.add_argument("--order", metavar="O", help="reverse or scramble:SEED, as wsm merge does")
    sub.add_argument("--plot", metavar="FILE", help="also draw them: FILE.png and FILE.svg")
    sub.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm weights``: the checkpoint and update weights of a rule."""
    from wsm_jax.core import coefficients
    from wsm_jax.merging import weighting

    if options.count > MOST_WEIGHTS:
        raise UsageError(f"--count={options.count}: at most {MOST_WEIGHTS:,} weights are printed")
    if options.weight_decay is None and (options.learning_rate, options.steps_per_interval) != (None, None):
        raise UsageError("--learning_rate and --steps_per_interval go with --weight_decay")
    rule = weighting.changed(weighting.parse(options.curve), extrapolate=options.extrapolate, order=options.order)
    vector = weighting.count_weights(
        rule,
        options.count,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay or 0.0,
        steps_per_interval=options.steps_per_interval,
    )
    scales = coefficients.tail_sums(vector)
    if options.plot:
        from wsm_jax.reporting import plots

        plots.save(plots.weights_figure([options.curve], options.count, {options.curve: vector}), options.plot)
    if options.json:
        values = {"curve": options.curve, "count": options.count}
        print(json.dumps({**values, **rule.changes, "weights": vector.tolist(), "update_weights": scales.tolist()}))
        return
    rows = [
        [str(i), f"{c:.6f}", f"{w:.6f}" if i else ""]
        for i, (c, w) in enumerate(zip(vector, [1.0, *scales], strict=True))
    ]
    print_table(["checkpoint (0 = oldest)", "weight c", "scale w of the updates before it"], rows, title=options.curve)
