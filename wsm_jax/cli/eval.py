"""``wsm eval``: the loss of a checkpoint or merge on held-out documents, any text, or answers given their prompts; and
what it scores on tasks."""

import argparse
import json

from wsm_jax.cli import eval_tasks
from wsm_jax.cli.arguments import whole
from wsm_jax.errors import NonFiniteError, UsageError
from wsm_jax.reporting.tables import print_table, text


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("--run", required=True, dest="directory", metavar="DIR", help="the run directory")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--step", type=whole, metavar="S", help="a saved step (default: the newest)")
    which.add_argument("--merged", metavar="NAME|PATH", help="a merge of the run, or one that lies elsewhere")
    sub.add_argument(
        "--average",
        metavar="NAME",
        help="an average that the run keeps instead of its parameters: ema, ...",
    )
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--split", default="validation", choices=("validation", "test"), help="default: validation")
    what.add_argument(
        "--source", metavar="TEXT", help="any text instead of the run's own data: text:PATH_OR_GLOB, hf:NAME, ..."
    )
    what.add_argument(
        "--answers",
        metavar="FILE",
        help="measure answers given their prompts instead: JSON lines with prompt and answer, .jsonl or .jsonl.gz",
    )
    eval_tasks.add(sub, what)
    sub.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm eval``: loss, standard error, perplexity and bits per byte; of answers, how many were left out too."""
    if eval_tasks.asked(options):
        eval_tasks.run(options)
        return
    from wsm_jax.checkpoints import orbax
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.evaluation import answers
    from wsm_jax.evaluation import evaluate as evaluate_lib

    run = Run(options.directory)
    if options.merged and options.average:
        raise UsageError("--average goes with a step, not with --merged")
    item = options.average or orbax.PARAMS
    path = evaluate_lib.checkpoint_path(run, step=options.step, merged=options.merged, item=item)
    if options.answers:
        evaluator = answers.run_evaluator(run, options.answers)
    else:
        evaluator = evaluate_lib.run_evaluator(run, options.split, source=options.source or "")
    if options.merged:
        evaluate_lib.check_fits(run, path)
    params = evaluate_lib.load(run, path, item)
    try:
        evaluation = evaluator(params)
    except NonFiniteError as error:
        raise NonFiniteError(error.step, f"{path}: {error}") from error
    figures = {"checkpoint": str(path), "item": item}
    if options.answers:
        figures |= {"answers": options.answers, **answers.summary(evaluation)}
    elif options.source:
        figures |= {"source": options.source, **evaluation.summary(), **evaluation.intervals()}
    else:
        figures |= {"split": options.split, **evaluation.summary()}
    if options.json:
        # JSON knows no NaN: the standard error over a single document is null.
        known = {name: None if value != value else value for name, value in figures.items()}
        print(json.dumps(known))
    else:
        print_table(["figure", "value"], [[name, text(value)] for name, value in figures.items()])
