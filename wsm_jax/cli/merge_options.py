"""The options of ``wsm merge``. Imports nothing heavy, so that --help answers at once."""

import argparse

# Named here too, so that --help imports no numpy; a test compares them with the rules that there are.
CURVES = (
    "linear | cosine | minus_sqrt | square | exponential | inverse_sqrt | ema (decay curves), "
    "mean | lawa (uniform), wma (by index), ema:DECAY (recursive), best:N (lowest validation loss)"
)


def add(sub: argparse.ArgumentParser) -> None:
    """Adds them to the parser of ``wsm merge``."""
    inputs = sub.add_argument_group("explicit inputs")
    inputs.add_argument(
        "inputs",
        nargs="*",
        metavar="IN[:WEIGHT]",
        help="Orbax or safetensors folders, oldest first; uniform without weights and --curve",
    )
    window = sub.add_argument_group(
        "a window of a run", "It is count x interval long: two of --window, --count and --interval decide the third."
    )
    window.add_argument("--run", dest="directory", metavar="DIR", help="take checkpoints of this run's merge stream")
    window.add_argument("--window", metavar="W", help="length, e.g. 400steps, 2Mtok or 0.1run")
    window.add_argument("--count", type=int, metavar="N", help="checkpoints in the window")
    window.add_argument("--interval", type=int, metavar="K", help="steps between them (default: the stream's)")
    window.add_argument("--last_step", type=int, metavar="S", help="step of the newest one (default: the newest)")
    window.add_argument("--every", type=int, metavar="K", help="one merge at every K-th step where the window fits")
    window.add_argument(
        "--snapshot",
        choices=("point", "mean"),
        help="the checkpoints, or the means over the intervals that end at them (default: mean where nothing else is "
        "kept); a mean over several of the stream's intervals is exact",
    )
    rule = sub.add_argument_group("weights")
    which = rule.add_mutually_exclusive_group()
    which.add_argument(
        "--curve",
        metavar="C",
        help=f"{CURVES}; with --run also learned and search; means take decay curves, uniform ones and search",
    )
    which.add_argument("--schedule", metavar="FILE.py:NAME", help="emulate this function step -> learning rate")
    which.add_argument("--like", metavar="RUN", help="emulate the schedule of this run, e.g. of a WSD run")
    rule.add_argument("--weight_decay_aware", action="store_true", help="correct for AdamW's decay, leaf by leaf")
    fit = sub.add_argument_group(
        "weights fitted to held-out data",
        "--curve=search takes the best of all decay curves and windows up to the given one, --curve=learned descends "
        "the gradient of the loss with respect to the weights.",
    )
    fit.add_argument("--fit_split", metavar="SPLIT", help="validation or train; never test (default: validation)")
    fit.add_argument("--fit_steps", type=int, metavar="N", help="updates of the learned weights (default: 100)")
    fit.add_argument("--fit_seed", type=int, metavar="N", help="of the order of the batches (default: 0)")
    fit.add_argument("--fit_start", metavar="C", help="the curve to start from (default: linear, the plain mean)")
    fit.add_argument("--monotone", action="store_true", default=None, help="older checkpoints never weigh more")
    output = sub.add_argument_group("output")
    output.add_argument("--output", metavar="OUT", help="default RUN/merged/NAME; with --every a folder of NAMEs")
    output.add_argument("--name", help="default <curve>-<count>x<interval>-at-<step>")
    output.add_argument("--item", help="item of the checkpoints to read (default: params, else the only one)")
    output.add_argument("--format", choices=("orbax", "safetensors"), help="default: as the inputs")
    output.add_argument(
        "--dtype",
        default="same",
        choices=("same", "float32", "bfloat16", "float16"),
        help="of the averaged leaves; sums are float32 whatever goes in (default: same)",
    )
    output.add_argument(
        "--leaves",
        action="append",
        metavar="REGEX=POLICY",
        help="average | last | first | skip | error for leaves whose path matches; the first that matches counts "
        "(default: floating leaves average, others last)",
    )
    output.add_argument(
        "--include_optimizer",
        action="store_true",
        help="merge what stands beside the params or model of a saved train state, too (default: left out)",
    )
    output.add_argument("--verify", action="store_true", help="compare samples of the output with a float64 sum")
    output.add_argument(
        "--explain", action="store_true", help="print what would be done with each leaf; writes nothing"
    )
    output.add_argument("--json", action="store_true", help="print the record as JSON, with --every a list of them")
