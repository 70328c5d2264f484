"""``wsm import``: a public model, or a series of its checkpoints, becomes a run."""

import argparse
import json
import sys

from wsm_jax.cli.arguments import whole


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument(
        "source",
        metavar="FOLDER_OR_HUB_ID[@REVISION,...]",
        help="a folder of transformers, a folder of such folders named by steps (step1000, checkpoint-1000), a file of "
        "nanoGPT, or a name on the hub; several revisions make a series",
    )
    sub.add_argument("--output", required=True, metavar="RUN", help="the run directory to be")
    sub.add_argument(
        "--context",
        type=whole,
        default=0,
        metavar="N",
        help="tokens that evaluations and training of the run see at once (default: the model's)",
    )
    sub.add_argument("--tokenizer", default="", metavar="PATH", help="instead of the model's own")
    sub.add_argument("--json", action="store_true", help="print what was imported as JSON")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm import``: writes the run, and says what was left out."""
    from wsm_jax.interchange import incoming

    def say(text: str) -> None:
        print(f"wsm: {text}", file=sys.stderr, flush=True)

    how = {"context": options.context, "tokenizer": options.tokenizer}
    imported = incoming.bring_in(options.source, options.output, **how, say=say)
    if options.json:
        print(json.dumps({"run": options.output, **imported}, indent=2))
        return
    if left_out := imported["left_out"]:
        print(f"left out, as no parameters: {', '.join(left_out)}")
    steps = ", ".join(imported["steps"])
    print(f"imported {imported['architecture']} at step {steps} into {options.output}")
