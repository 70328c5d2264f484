"""``wsm export``: a checkpoint or a merge of a run becomes a folder that ``transformers`` loads."""

import argparse
import json
from pathlib import Path

from wsm_jax.cli.arguments import whole


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("--run", required=True, dest="directory", metavar="DIR", help="the run directory")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--step", type=whole, metavar="S", help="a saved step (default: the newest)")
    which.add_argument("--merged", metavar="NAME|PATH", help="a merge of the run, or one that lies elsewhere")
    sub.add_argument("--output", required=True, metavar="FOLDER", help="the folder to be")
    sub.add_argument(
        "--dtype",
        default="same",
        choices=("same", "float32", "bfloat16", "float16"),
        help="of all tensors (default: of an imported model that of the source, else as stored)",
    )
    sub.add_argument(
        "--shard_bytes",
        type=whole,
        default=5 * 10**9,
        metavar="N",
        help="of one file of weights, at most (default: 5e9)",
    )
    sub.add_argument("--check", action="store_true", help="read the folder back and compare logits")
    sub.add_argument("--json", action="store_true", help="print what was exported as JSON")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm export``: writes the folder; with ``--check`` looks at it again."""
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.evaluation import evaluate
    from wsm_jax.interchange import check, outgoing

    exporting = Run(options.directory)
    path = evaluate.checkpoint_path(exporting, step=options.step, merged=options.merged)
    if options.merged:
        evaluate.check_fits(exporting, path)
    fields = evaluate.fields_of(exporting)
    record = outgoing.take_out(exporting, path, fields, options.output, dtype=options.dtype, shard=options.shard_bytes)[
        "exported"
    ]
    if options.check:
        record["logits_differ_by"] = check.compare(path, fields, Path(options.output))
    if options.json:
        print(json.dumps({"output": options.output, **record}, indent=2))
        return
    print(f"exported {path} as {record['architecture']}, {record['dtype']}, into {options.output}")
    if options.check:
        print(f"read back, logits differ by {record['logits_differ_by']:.3g}")
