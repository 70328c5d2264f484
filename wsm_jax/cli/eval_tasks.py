"""``wsm eval --tasks``: what a checkpoint, a merge, or many merges made in memory score on tasks of lm-eval."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsm_jax.cli.arguments import whole
from wsm_jax.errors import UsageError
from wsm_jax.reporting.tables import print_table

if TYPE_CHECKING:
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.evaluation.scores import TaskScore, Value
    from wsm_jax.merging.spec import MergeSpec

# What goes with --tasks alone.
_OWN = ("tasks_data", "limit", "shots", "curves", "counts", "output", "batch_tokens", "allow_code_execution")


def add(sub: argparse.ArgumentParser, what: Any) -> None:
    """Adds the arguments; ``what`` is the group of what is measured, of which there is one."""
    what.add_argument(
        "--tasks", metavar="NAME,...", help="tasks of lm-eval, packaged ones, those of the hub or files, e.g. arc_easy"
    )
    group = sub.add_argument_group("with --tasks")
    group.add_argument("--tasks_data", metavar="DIR", help="the folder with the files of packaged tasks, JSON lines")
    group.add_argument("--limit", type=whole, metavar="N", help="the first N questions of each task (default: all)")
    group.add_argument("--shots", type=whole, metavar="K", help="examples in each prompt (default: as the task says)")
    group.add_argument("--curves", metavar="C,...", help="score merges along these curves, made in memory in one pass")
    group.add_argument("--counts", metavar="N,...", help="of so many checkpoints, up to --step or to the newest")
    group.add_argument(
        "--output", metavar="DIR", help="results go to DIR/NAME of the checkpoint or merge (default: RUN/benchmarks)"
    )
    group.add_argument(
        "--allow_code_execution",
        action="store_true",
        default=None,
        help="run programs that the model wrote, in a sandbox: what humaneval and mbpp are scored by",
    )
    group.add_argument("--batch_tokens", type=whole, metavar="N", help="of one forward pass (default: 4096)")


def asked(options: argparse.Namespace) -> bool:
    """Whether tasks are asked for.

    Raises:
      UsageError: options that go with them alone.
    """
    if options.tasks:
        return True
    if given := [name for name in _OWN if getattr(options, name) is not None]:
        raise UsageError(f"--{given[0]} goes with --tasks")
    return False


def run(options: argparse.Namespace) -> None:
    """Scores, writes and prints; all that can be bad is looked at before any weight is read."""
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.evaluation import evaluate, language
    from wsm_jax.io import disk, places

    run = Run(options.directory)
    many = _specs(options, run)
    single = ("", run.path, "") if many else _single(options, run)
    output = places.at(options.output or run.path / "benchmarks")
    disk.check_writable(output)
    if options.batch_tokens is not None and options.batch_tokens < 1:
        raise UsageError(f"--batch_tokens={options.batch_tokens} must be at least 1")
    words = language.of(run)
    fields = evaluate.fields_of(run)
    if words.tokenizer.vocab_size > fields.vocab_size:
        raise UsageError(
            f"the tokenizer of {run.path} has {words.tokenizer.vocab_size} tokens, its model {fields.vocab_size}; they "
            "do not belong together"
        )

    import jax

    from wsm_jax.evaluation import benchmark, harness, task_files
    from wsm_jax.evaluation.execution import probe
    from wsm_jax.evaluation.journal import Journal
    from wsm_jax.evaluation.scorer import BATCH_TOKENS
    from wsm_jax.parallel import mesh

    names = [name for name in options.tasks.split(",") if name]
    data = places.local(options.tasks_data).expanduser() if options.tasks_data else None
    what = benchmark.Asked(task_files.load(names, data), options.shots, options.limit)
    what.check()
    if what.runs_programs:
        what = dataclasses.replace(what, sandbox=probe.check_allowed(bool(options.allow_code_execution)).record())
    models = _merges(run, many) if many else _loaded(run, *single)
    about = [names, options.shots, options.limit, [*many] or single[0]]
    with benchmark.kept(output, *about) as file:
        journal = Journal(file)
        model = harness.LanguageModel(
            evaluate.model_of(run),
            words,
            mesh.like(run.config.mesh),
            kept=journal,
            batch_tokens=options.batch_tokens or BATCH_TOKENS,
            shown=None if options.json or jax.process_index() else sys.stderr,
        )
        try:
            found = benchmark.run(models, what, model, output, say=_say)
        finally:
            journal.close()
    if jax.process_index() == 0:
        _print(options, found, output)


def _say(text: str) -> None:
    import jax

    if jax.process_index() == 0:
        print(f"wsm: note: {text}", file=sys.stderr, flush=True)


def _single(options: argparse.Namespace, run: "Run") -> tuple[str, Path, str]:
    """The name, the folder and the item of one checkpoint or merge."""
    from wsm_jax.checkpoints import orbax
    from wsm_jax.evaluation import evaluate

    if options.merged and options.average:
        raise UsageError("--average goes with a step, not with --merged")
    item = options.average or orbax.PARAMS
    path = evaluate.checkpoint_path(run, step=options.step, merged=options.merged, item=item)
    if options.merged:
        evaluate.check_fits(run, path)
        return path.name, path, item
    return f"step-{path.name}" + (f"-{options.average}" if options.average else ""), path, item


def _specs(options: argparse.Namespace, run: "Run") -> dict[str, "MergeSpec"]:
    """The merges of ``--curves`` and ``--counts``, by their default names; none where these are not given."""
    if not options.curves and not options.counts:
        return {}
    if not options.curves or not options.counts:
        raise UsageError("--curves=C,... and --counts=N,... go together")
    if options.merged or options.average:
        raise UsageError("--curves makes its own merges; it goes with neither --merged nor --average")
    from wsm_jax.merging import recipe, selection, weighting

    specs = {}
    for curve in options.curves.split(","):
        rule, snapshot = weighting.parse(curve), selection.choose_snapshot(run)
        for text in options.counts.split(","):
            try:
                count = whole(text)
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"--counts: {error}") from error
            window = selection.select(run, count, last_step=options.step, snapshot=snapshot)
            specs[selection.default_name(rule.label, window)] = recipe.window_recipe(rule, run, window)
    return specs


def _loaded(run: "Run", name: str, path: Path, item: str) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    from wsm_jax.evaluation import evaluate

    yield name, evaluate.load(run, path, item), {"run": str(run.path), "checkpoint": str(path), "item": item}


def _merges(run: "Run", specs: Mapping[str, "MergeSpec"]) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    from wsm_jax.evaluation import evaluate
    from wsm_jax.merging import offline

    for name, params in offline.in_memory(specs, shardings=evaluate.shardings(run)):
        yield name, params, {"run": str(run.path), "checkpoint": "merged in memory", "steps": list(specs[name].steps)}


# --- what is printed -------------------------------------------------------------------------------------------------


def _print(options: argparse.Namespace, found: list[list["TaskScore"]], output: Path) -> None:
    if options.json:
        records = [score.record() for scores in found for score in scores]
        print(json.dumps([{k: v for k, v in record.items() if k != "by_question"} for record in records]))
        return
    for scores in found:
        rows = [_row(score) for score in scores]
        header = ["task", "questions", "shots", "accuracy", "chance", "bits per byte", "gold over others", "cut"]
        print_table(header, rows, title=scores[0].model)
    if len(found) > 1:
        _print_differences(found)
    print(f"results: {', '.join(str(output / scores[0].model) for scores in found)}")


def _row(score: "TaskScore") -> list[str]:
    return [
        score.task,
        f"{score.questions:,}",
        str(score.facts["shots"]),
        _percent(score.accuracy) + (" (chance)" if score.is_chance else ""),
        f"{100 * score.chance:.1f}" if score.metric else "",
        _figure(score.bits_per_byte),
        _figure(score.gold_margin),
        str(score.facts["truncated"] or ""),
    ]


def _print_differences(found: list[list["TaskScore"]]) -> None:
    """To the first model, paired by question."""
    from wsm_jax.evaluation.scores import differences

    first, *others = found
    rows = []
    for scores in others:
        for one, other in zip(scores, first, strict=True):
            values = differences(one, other)
            bits = values["bits_per_byte"]
            signal = "" if math.isnan(bits.signal_over_noise) else f"{bits.signal_over_noise:+.1f}"
            row = [one.model, one.task, _percent(values.get("accuracy")), _figure(bits), signal]
            rows.append(row)
    header = ["merge", "task", "accuracy", "bits per byte", "signal over noise"]
    print_table(header, rows, title=f"difference to {first[0].model}, paired by question")


def _percent(value: "Value | None") -> str:
    return "" if value is None else f"{100 * value.value:.1f} ± {100 * value.stderr:.1f}"


def _figure(value: "Value | None") -> str:
    return "" if value is None else f"{value.value:.4f} ± {value.stderr:.4f}"
