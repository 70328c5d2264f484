"""The command line: ``wsm prepare | train | merge | weights | inspect | eval | report``.

Heavy libraries are imported by the verbs that need them. Exit status: 0 done; 2 bad input (one line on stderr);
3 stopped at a NaN; 75 stopped by a signal, resumable; 130 interrupted before training.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from wsm_jax import config_flags, merge_options
from wsm_jax.errors import UsageError, ended
from wsm_jax.tables import listed, print_table, text

MOST_WEIGHTS = 10**5


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help tells more)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status, as :func:`wsm_jax.errors.ended` has it."""
    return ended("wsm", lambda: _run(sys.argv[1:] if arguments is None else list(arguments)))


def _run(arguments: list[str]) -> int:
    # --config.field=value belongs to ml_collections; argparse sees the rest.
    arguments = _joined(arguments)
    settings = [a for a in arguments if a.split("=")[0].split(".")[0] == "--config"]
    options, unknown = _parser().parse_known_args([a for a in arguments if a not in settings])
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)} (wsm {options.verb} --help tells more)")
    if settings and not options.takes_config:
        raise UsageError(f"wsm {options.verb} takes no {settings[0].split('=')[0]}")
    return options.run(options, settings) or 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--config FILE`` and ``--config.FIELD VALUE`` with a ``=``, as argparse would take them."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].split(".")[0] == "--config" and "=" not in joined[-1] and argument[:2] != "--":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="wsm", description="Train at a constant rate, merge checkpoints, compare with a real decay.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)

    def verb(name: str, run: Callable[..., int | None], help: str, config: bool = False) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=help,
            description=help,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=config_flags.help_text() if config else None,
        )
        if config:
            sub.add_argument_group("configuration").add_argument(
                "--config", metavar="FILE", help="a Python file with get_config(), e.g. configs/tiny.py"
            )
        sub.set_defaults(run=run, takes_config=config)
        return sub

    verb("prepare", prepare, "Read the documents, train or load the tokenizer, write the token store.", config=True)

    sub = verb("train", train, "Train a run, or go on with one that stopped.", config=True)
    sub.add_argument("--run", required=True, dest="directory", metavar="DIR", help="the run directory")
    sub.add_argument("--branch_from", default="", metavar="RUN@STEP", help="start from this full state, e.g. to decay")
    sub.add_argument(
        "--params_from",
        default="",
        metavar="PATH",
        help="start with these parameters, e.g. a merge's; the rest as without",
    )
    sub.add_argument("--quiet", action="store_true", help="no progress bar, no messages")
    sub.add_argument("--distributed", action="store_true", help="one process of several: jax.distributed.initialize()")

    merge_options.add(verb("merge", merge, "Merge checkpoints given as IN[:WEIGHT] ..., or windows of a run's."))

    sub = verb("weights", weights, "Print the merge weights of a decay curve or an average.")
    sub.add_argument(
        "--curve", required=True, metavar="C", help=f"{merge_options.CURVES} (best:N only with wsm merge --run)"
    )
    sub.add_argument("--count", required=True, type=int, metavar="N", help="checkpoints")
    sub.add_argument("--learning_rate", type=float, metavar="LR", help="for the weight-decay-aware form")
    sub.add_argument("--weight_decay", type=float, metavar="WD", help="AdamW's decay (default: none, the plain form)")
    sub.add_argument("--steps_per_interval", type=int, metavar="T", help="updates between checkpoints")
    sub.add_argument("--plot", metavar="FILE", help="also draw them: FILE.png and FILE.svg")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = verb("inspect", inspect, "Tell what a run, a checkpoint or a merge is, without reading its arrays.")
    sub.add_argument("path", metavar="PATH", help="a run directory, an Orbax checkpoint or a safetensors folder")
    sub.add_argument("--item", help="item of an Orbax checkpoint (default: params, else the only one)")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = verb("eval", evaluate, "Loss of a run's checkpoint or merge on held-out documents.")
    sub.add_argument("--run", required=True, dest="directory", metavar="DIR", help="the run directory")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="S", help="a saved step (default: the newest)")
    which.add_argument("--merged", metavar="NAME|PATH", help="a merge of the run, or one that lies elsewhere")
    sub.add_argument(
        "--average", metavar="NAME", help="an average that the run keeps instead of its parameters: ema, ..."
    )
    sub.add_argument("--split", default="validation", choices=("validation", "test"), help="default: validation")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = verb(
        "report",
        report,
        "Tables and figures of a constant-rate run beside its real decays; or all pages of experiments in one.",
    )
    sub.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|RESULTS",
        help="the constant run first, then runs branched from it; or a folder of pages: writes RESULTS/REPORT.md",
    )
    sub.add_argument("--output", metavar="DIR", help="default: RUN/report of the first run")
    sub.add_argument("--learned", action="store_true", help="add a merge whose weights are learned on validation")
    sub.add_argument("--json", action="store_true", help="print the table as JSON")
    return parser


def prepare(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm prepare``: the token store of a configuration, with a line for each source and split."""
    config = config_flags.load(settings)
    from wsm_jax.data import tokens

    corpus = tokens.prepare(config.data, progress=True)
    stores = {store.hash: store for store, _ in [*corpus.stable, *corpus.switch]}.values()
    rows = [
        [store.manifest["source"], split, f"{n['documents']:,}", f"{n['tokens']:,}", f"{n['bytes']:,}"]
        for store in stores
        for split, n in store.manifest["splits"].items()
    ]
    print_table(["source", "split", "documents", "tokens", "UTF-8 bytes"], rows, title=f"data {corpus.hash[:12]}")


def train(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm train``: see :func:`wsm_jax.train.train`."""
    config = config_flags.load(settings)
    if options.distributed:
        import jax

        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"--distributed: this is no process of a cluster that JAX knows ({error})") from error
    from wsm_jax.train import train as run_training

    run_training(
        config,
        options.directory,
        branch_from=options.branch_from,
        params_from=options.params_from,
        quiet=options.quiet,
    )


def merge(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm merge``: from explicit inputs or windows of a run."""
    asked = "JAX_PLATFORMS" in os.environ  # on a TPU the import sets it
    import jax

    from wsm_jax.merging import command, weighting

    request = None
    fitted = options.directory and options.curve in weighting.FITTED
    if not (fitted or asked):
        jax.config.update("jax_platforms", "cpu")  # sums are made there, and a run may hold the accelerator
    if fitted:
        from wsm_jax import tuning

        say = (lambda _: None) if options.json else (lambda text: print(text, file=sys.stderr, flush=True))
        request = tuning.make_request(options, say=say)
    if options.explain:
        rows = command.explain(options)
        if options.json:
            print(json.dumps(rows, indent=2))
        else:
            print_table(list(rows[0]), [["" if v is None else str(v) for v in row.values()] for row in rows])
        return
    records = command.run(options, request)
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


def weights(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm weights``: the checkpoint and update weights of a rule."""
    from wsm_jax import coefficients
    from wsm_jax.merging import weighting

    if options.count > MOST_WEIGHTS:
        raise UsageError(f"--count={options.count}: at most {MOST_WEIGHTS:,} weights are printed")
    if options.weight_decay is None and (options.learning_rate, options.steps_per_interval) != (None, None):
        raise UsageError("--learning_rate and --steps_per_interval go with --weight_decay")
    vector = weighting.count_weights(
        weighting.parse(options.curve),
        options.count,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay or 0.0,
        steps_per_interval=options.steps_per_interval,
    )
    scales = coefficients.update_weights(vector)
    if options.plot:
        from wsm_jax import plots

        plots.save(plots.weights_figure([options.curve], options.count, {options.curve: vector}), options.plot)
    if options.json:
        values = {"curve": options.curve, "count": options.count}
        print(json.dumps({**values, "weights": vector.tolist(), "update_weights": scales.tolist()}))
        return
    rows = [
        [str(i), f"{c:.6f}", f"{w:.6f}" if i else ""]
        for i, (c, w) in enumerate(zip(vector, [1.0, *scales], strict=True))
    ]
    print_table(["checkpoint (0 = oldest)", "weight c", "scale w of the updates before it"], rows, title=options.curve)


def inspect(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm inspect``: facts, leaves and the record of where it comes from."""
    from wsm_jax.merging import inspection

    facts = inspection.inspect(options.path, options.item)
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    leaves, record = facts.pop("leaves", {}), facts.pop("record", {})
    if leaves:
        print_table(["leaf", "shape", "dtype"], [[name, str(x["shape"]), x["dtype"]] for name, x in leaves.items()])
    print_table(["fact", "value"], [[name, listed(value)] for name, value in facts.items()])
    inputs = record.pop("inputs", [])
    if inputs:
        columns = list(dict.fromkeys(name for entry in inputs for name in entry))
        print_table(columns, [[str(entry.get(name, "")) for name in columns] for entry in inputs], title="merged from")
    known = {name: value for name, value in record.items() if value not in (None, [], {})}
    if known:
        print_table(["recorded with it", "value"], [[name, listed(value)] for name, value in known.items()])


def evaluate(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm eval``: loss, standard error, perplexity and bits per byte."""
    from wsm_jax import checkpoints
    from wsm_jax import evaluate as evaluate_lib
    from wsm_jax.run import Run

    run = Run(options.directory)
    if options.merged and options.average:
        raise UsageError("--average goes with a step, not with --merged")
    item = options.average or checkpoints.PARAMS
    path = evaluate_lib.checkpoint_path(run, step=options.step, merged=options.merged, item=item)
    evaluator = evaluate_lib.run_evaluator(run, options.split)
    if options.merged:
        evaluate_lib.check_fits(run, path)
    params = checkpoints.load_tree(path, item)
    figures = {"checkpoint": str(path), "item": item, "split": options.split, **evaluator(params).summary()}
    if options.json:
        # JSON knows no NaN: the standard error over a single document is null.
        known = {name: None if value != value else value for name, value in figures.items()}
        print(json.dumps(known))
    else:
        print_table(["figure", "value"], [[name, text(value)] for name, value in figures.items()])


def report(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm report``: see :func:`wsm_jax.report.write` for runs, :func:`wsm_jax.pages.write` for a folder of pages."""
    first = Path(options.runs[0])
    if not (first / "config.json").is_file() and any(first.glob("*/*/records.jsonl")):
        _gather(options, first)
        return
    from wsm_jax import comparison
    from wsm_jax import report as report_lib
    from wsm_jax.run import Run

    runs = [Run(path) for path in options.runs]
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    output = Path(options.output or runs[0].path / "report")
    comparison.check(runs[0], runs[1:])
    output.mkdir(parents=True, exist_ok=True)  # what cannot be written is not computed
    result = comparison.compare(runs[0], runs[1:], learned=options.learned, say=say)
    folder = report_lib.write(result, output)
    if options.json:
        print(json.dumps(report_lib.to_json(result), indent=2))
        return
    header, *rows = report_lib.table(result)
    print_table(header, rows, title="test loss, nats per token")
    print("\n".join(report_lib.findings(result)))
    print(f"report: {folder}/report.md")


def _gather(options: argparse.Namespace, root: Path) -> None:
    from wsm_jax import pages

    given = {"a second folder": options.runs[1:], "--output": options.output, "--learned": options.learned}
    if wrong := [name for name, value in {**given, "--json": options.json}.items() if value]:
        raise UsageError(f"{wrong[0]} goes with runs, but {root} has no config.json")
    print(f"report: {pages.write(root)}")


if __name__ == "__main__":
    sys.exit(main())
