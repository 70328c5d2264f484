"""``wsm merge``: merges of checkpoints, given one by one or as windows of a run."""

import argparse
import json
import os
import sys

from wsm_jax.reporting.tables import print_table


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm merge``: from explicit inputs or windows of a run."""
    asked = "JAX_PLATFORMS" in os.environ  # on a TPU the import sets it
    import jax

    from wsm_jax.cli import merge_request
    from wsm_jax.merging import weighting

    request = None
    fitted = options.directory and options.curve in weighting.FITTED
    if not (fitted or asked):
        jax.config.update("jax_platforms", "cpu")  # sums are made there, and a run may hold the accelerator
    if fitted:
        from wsm_jax.cli import fitted

        say = (lambda _: None) if options.json else (lambda text: print(text, file=sys.stderr, flush=True))
        request = fitted.make_request(options, say=say)
    if options.explain:
        rows = merge_request.explain(options)
        if options.json:
            print(json.dumps(rows, indent=2))
        else:
            print_table(list(rows[0]), [["" if v is None else str(v) for v in row.values()] for row in rows])
        return
    records = merge_request.run(options, request)
    if options.json:
        print(json.dumps(records[0] if options.every is None else records, indent=2))
        return
    for record in records:
        vectors = record["weights"].values() if isinstance(record["weights"], dict) else [record["weights"]]
        used = sum(any(column) for column in zip(*vectors, strict=True))
        what = "checkpoints"
        if record.get("snapshot") == "mean":
            end = "params" in record["items"]
            used, what = used - end, "interval means and the end point" if end else "interval means"
        print(f"merged {used} {what} into {record['output']}")
        if options.verify:
            print("verified: samples of every leaf agree with a sum in float64")
        if fitted := record.get("fit"):
            start = "mean of the whole window" if "chosen" in fitted else f"{fitted['start']} weights"
            print(
                f"{record['curve']} x {record['count']}: loss on {fitted['split']} {fitted['loss']:.4f}; {start} "
                f"{fitted['before']:.4f}, last checkpoint {fitted['last_checkpoint']:.4f}"
            )
            if fitted["loss"] > fitted["last_checkpoint"]:
                print("wsm: warning: the last checkpoint alone is better than this merge", file=sys.stderr)
