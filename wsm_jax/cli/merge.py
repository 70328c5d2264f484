"""``wsm merge``: merges of checkpoints, given one by one, as the steps in a folder, or as windows of a run."""

import argparse
import json
import os
import sys
from typing import Any

from wsm_jax.cli.arguments import whole
from wsm_jax.errors import UsageError
from wsm_jax.reporting.tables import print_table

# Named here too, so that --help imports no numpy; a test compares them with the rules that there are.
CURVES = (
    "linear | cosine | minus_sqrt | square | exponential | inverse_sqrt | ema (decay curves), "
    "mean | lawa (uniform), wma (by index), ema:DECAY (recursive), best:N (lowest validation loss)"
)
EXAMPLES = """examples:
  wsm merge CHECKPOINTS --curve=minus_sqrt --count=8 --output=OUT   the newest 8 in a folder of any trainer
  wsm merge A:0.3 B:0.7 --output=OUT                                given checkpoints and weights
  wsm merge --run=RUN --curve=linear --count=10                     a window of a run of wsm train"""
FIT_OPTIONS = ("fit_split", "source", "fit_steps", "fit_seed", "fit_start", "monotone")


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.epilog = EXAMPLES
    _add_checkpoints(sub)
    _add_weights(sub)
    _add_output(sub)


def _add_checkpoints(sub: argparse.ArgumentParser) -> None:
    inputs = sub.add_argument_group("explicit inputs")
    inputs.add_argument(
        "inputs",
        nargs="*",
        metavar="IN[:WEIGHT]",
        help="Orbax or safetensors folders, or files of torch.save, oldest first; uniform without weights and "
        "--curve. A path that exists is "
        "taken whole, even one that ends in :0.5",
    )
    window = sub.add_argument_group(
        "a window of a run, or of the steps in one folder IN",
        "It is count x interval long: two of --window, --count and --interval decide the third. In a folder IN of "
        "steps (500, checkpoint-500, step500-unsharded, ep=1-step=500, the model in it or one folder below) --count "
        "alone takes the newest there are, evenly spaced or not.",
    )
    window.add_argument("--run", dest="directory", metavar="DIR", help="take checkpoints of this run's merge stream")
    window.add_argument("--window", metavar="W", help="length, e.g. 400steps; of a run also 2Mtok or 0.1run")
    window.add_argument("--count", type=whole, metavar="N", help="checkpoints in the window")
    window.add_argument("--interval", type=whole, metavar="K", help="steps between them (default: the stream's)")
    window.add_argument("--last_step", type=whole, metavar="S", help="step of the newest one (default: the newest)")
    window.add_argument("--every", type=whole, metavar="K", help="one merge at every K-th step where the window fits")
    window.add_argument(
        "--follow",
        action="store_true",
        default=None,
        help="with --every, beside the trainer: merge each window as the run writes it, until its end. What is merged "
        "already stays; exit status 75 where no process trains the run before its end",
    )
    window.add_argument(
        "--spacing",
        choices=("index", "true"),
        help="checkpoints of a folder that are not evenly spaced: weigh them by index (default), or take the curve at "
        "the true steps",
    )
    window.add_argument(
        "--snapshot",
        choices=("point", "mean"),
        help="the checkpoints, or the means over the intervals that end at them (default: mean where nothing else is "
        "kept); a mean over several of the stream's intervals is exact",
    )


def _add_weights(sub: argparse.ArgumentParser) -> None:
    rule = sub.add_argument_group("weights")
    which = rule.add_mutually_exclusive_group()
    which.add_argument(
        "--curve",
        metavar="C",
        help=f"{CURVES}; with --run also learned and search. --snapshot=mean takes decay curves, mean, lawa and search",
    )
    which.add_argument("--schedule", metavar="FILE.py:NAME", help="emulate this function step -> learning rate")
    which.add_argument("--like", metavar="RUN", help="emulate the schedule of this run, e.g. of a WSD run")
    rule.add_argument("--weight_decay_aware", action="store_true", help="correct for AdamW's decay, leaf by leaf")
    rule.add_argument(
        "--extrapolate",
        type=float,
        metavar="A",
        help="go on past the merge: oldest + A (merge - oldest), 1 being the merge; some weights become negative",
    )
    rule.add_argument(
        "--order",
        metavar="O",
        help="reverse or scramble:SEED: the same weights for other checkpoints, to see whether it matters",
    )
    fit = sub.add_argument_group(
        "weights fitted to held-out data",
        "--curve=search takes the best of all decay curves and windows up to the given one, --curve=learned descends "
        "the gradient of the loss with respect to the weights.",
    )
    fit.add_argument("--fit_split", metavar="SPLIT", help="validation or train; never test (default: validation)")
    fit.add_argument(
        "--source", metavar="TEXT", help="text to fit to instead of the run's own data, e.g. text:PATH (imported runs)"
    )
    fit.add_argument("--fit_steps", type=whole, metavar="N", help="updates of the learned weights (default: 100)")
    fit.add_argument("--fit_seed", type=whole, metavar="N", help="of the order of the batches (default: 0)")
    fit.add_argument("--fit_start", metavar="C", help="the curve to start from (default: linear, the plain mean)")
    fit.add_argument("--monotone", action="store_true", default=None, help="older checkpoints never weigh more")


def _add_output(sub: argparse.ArgumentParser) -> None:
    output = sub.add_argument_group("output")
    output.add_argument("--output", metavar="OUT", help="default RUN/merged/NAME; with --every a folder of NAMEs")
    output.add_argument("--name", help="default <curve>-<count>x<interval>-at-<step>")
    output.add_argument(
        "--item",
        help="item of the checkpoints to read (default: params, else the only one; of "
        "a file of PyTorch state_dict or model)",
    )
    output.add_argument("--output_item", metavar="NAME", help="item of the Orbax checkpoint written (default: params)")
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
    output.add_argument(
        "--json",
        action="store_true",
        help="print the record as JSON, with --every a list of them, with --follow one a line as they are made",
    )


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm merge``: from explicit inputs, the steps in a folder, or windows of a run."""
    asked = "JAX_PLATFORMS" in os.environ  # on a TPU the import sets it
    import jax

    from wsm_jax.cli import merge_inputs, merge_request, merge_run
    from wsm_jax.merging import weighting

    is_fitted = options.directory is not None and options.curve in weighting.FITTED
    if not (is_fitted or asked):
        jax.config.update("jax_platforms", "cpu")  # sums are made there, and a run may hold the accelerator
    if (options.directory is None) == (not options.inputs):
        raise UsageError("wsm merge takes either checkpoint folders or --run=DIR; wsm merge --help has examples")
    if is_fitted:
        from wsm_jax.cli import fitted

        say = (lambda _: None) if options.json else (lambda text: print(text, file=sys.stderr, flush=True))
        specs = fitted.make_specs(options, say=say)
    else:
        for flag in FIT_OPTIONS:
            if getattr(options, flag) is not None:
                raise UsageError(
                    f"--{flag} goes with --curve=learned, --fit_split and --source also with --curve=search"
                )
        if options.follow and options.directory is not None:
            for records in merge_run.follow(options):
                for record in records:
                    print(json.dumps(record), flush=True) if options.json else _tell(options, record)
            return
        specs = (merge_inputs if options.directory is None else merge_run).make_specs(options)
    if options.explain:
        rows = merge_request.explain(specs)
        if options.json:
            print(json.dumps(rows, indent=2))
        else:
            print_table(list(rows[0]), [["" if v is None else str(v) for v in row.values()] for row in rows])
        return
    records = merge_request.run(options, specs)
    if options.json:
        print(json.dumps(records[0] if options.every is None else records, indent=2))
        return
    for record in records:
        _tell(options, record)


def _tell(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """What came of one merge, in a line or two."""
    vectors = record["weights"].values() if isinstance(record["weights"], dict) else [record["weights"]]
    used = sum(any(column) for column in zip(*vectors, strict=True))
    what = "checkpoints"
    if record.get("snapshot") == "mean":
        end = "params" in record["items"]
        used, what = used - end, "interval means and the end point" if end else "interval means"
    if len(options.inputs) == 1 and len(steps := record.get("steps") or []) > 1:  # of a folder: which were chosen
        what += f" of steps {steps[0]} to {steps[-1]}"
    print(f"merged {used} {what} into {record['output']}", flush=True)
    if options.verify:
        print("verified: samples of every leaf agree with a sum in float64")
    if fit := record.get("fit"):
        start = "mean of the whole window" if "chosen" in fit else f"{fit['start']} weights"
        where = fit.get("source") or fit["split"]
        print(
            f"{record['curve']} x {record['count']}: loss on {where} {fit['loss']:.4f}; {start} "
            f"{fit['before']:.4f}, last checkpoint {fit['last_checkpoint']:.4f}"
        )
        if fit["loss"] > fit["last_checkpoint"]:
            print("wsm: warning: the last checkpoint alone is better than this merge", file=sys.stderr)
