"""Benchmarks of lm-eval for many parameters of one model: asked, scored, and written in its format and in ours."""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from lm_eval import __version__, evaluator
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.loggers.utils import get_commit_from_path
from lm_eval.tasks import TaskManager

from wsm_jax.errors import NonFiniteError, UsageError
from wsm_jax.evaluation import gold, scores, verdicts
from wsm_jax.evaluation.harness import LanguageModel
from wsm_jax.evaluation.scores import OTHER, TaskScore
from wsm_jax.evaluation.task_files import FOLDER, Benchmark
from wsm_jax.io import claims
from wsm_jax.io.files import read_jsonl, write_jsonl
from wsm_jax.io.publish import replaced
from wsm_jax.parallel.processes import all_succeed

_HASH = 16  # characters of a hash in a record
_MODEL = ("run", "checkpoint", "dtype", "context", "bos", "tokenizer_hash")  # facts that lm-eval's format has, too


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
      benchmarks: in the order of the tables.
      shots: examples in each prompt; None: as many as the task says.
      limit: questions of each task, the first ones; None: all.
      sandbox: what programs of the model run in, see :mod:`wsm_jax.evaluation.execution`; None: none may run.
    """

    benchmarks: Sequence[Benchmark]
    shots: int | None = None
    limit: int | None = None
    sandbox: Mapping[str, Any] | None = None

    @property
    def runs_programs(self) -> bool:
        """Whether a task is scored by running what the model wrote."""
        return any(task.config.unsafe_code for one in self.benchmarks for task in one.tasks)

    def check(self) -> None:
        """Raises UsageError for numbers that a task cannot do, or a task that runs programs without a sandbox."""
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit={self.limit} must be at least 1")
        if self.shots is not None and self.shots < 0:
            raise UsageError(f"--shots={self.shots} must be at least 0")
        for one in self.benchmarks:
            for task in one.tasks:
                judge = getattr(task.config.process_results, "__module__", "")
                if task.config.unsafe_code and judge != verdicts.__name__:
                    raise UsageError(
                        f"task {task.task_name} runs programs that the model wrote, without a sandbox; humaneval and "
                        "mbpp of this package, with --tasks_data=DIR, run them in one"
                    )
                own = task.config.num_fewshot
                shots = self.shots if self.shots is not None and own != 0 else own or 0  # as lm-eval has it
                if shots and shots > (there := _examples(task)):
                    raise UsageError(f"--shots={shots}: task {task.task_name} has {there} examples at most")


def _examples(task: Any) -> int:
    """How many examples a prompt can have; one fewer where the question may be among them."""
    own = task.fewshot_cfg.split == task.config.test_split
    return (task.fewest if hasattr(task, "fewest") else len(task.fewshot_docs())) - own


@contextlib.contextmanager
def kept(output: Path, *what: Any) -> Iterator[Path | None]:
    """The file of finished requests beside results that are not there yet; it goes when the block ends well.

    Args:
      output: the folder of the results.
      what: of the command, so that another one has a file of its own.

    Raises:
      UsageError: another process asks the same.
    """
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    folder = output / f".unfinished-{name}"
    with contextlib.ExitStack() as stack:
        with all_succeed():
            if jax.process_index() == 0:
                busy = f"another process evaluates the same into {output}; wait for it, or use another --output"
                stack.enter_context(claims.claimed(folder, busy))
        yield folder / "requests.jsonl"
    if jax.process_index() == 0:
        shutil.rmtree(folder)


def run(
    models: Iterable[tuple[str, Any, Mapping[str, Any]]],
    asked: Asked,
    model: LanguageModel,
    output: Path,
    say: Callable[[str], None] = lambda _: None,
) -> list[list[TaskScore]]:
    """Asks the same of several models and writes the results of each, whole or not at all.

    Args:
      models: name, parameters, and facts that are recorded with each score.
      asked: the tasks.
      model: what answers, with each of the parameters in turn.
      output: a folder; results of a model are in a folder of its name there. Tasks that it has already are replaced.
      say: told of prompts that were cut.

    Returns:
      for each model the score of each task.

    Raises:
      NonFiniteError: logits that are not finite, naming the model.
    """
    found: list[list[TaskScore]] = []
    for name, params, facts in models:
        model.answer_with(params, name)
        try:
            results = _ask(asked, model)
            known = {**facts, **({"sandbox": asked.sandbox} if asked.sandbox else {})}
            found.append([_score(one, results, model, name, known) for one in asked.benchmarks])
        except NonFiniteError as error:
            raise NonFiniteError(error.step, f"{name}: {error}") from error
        for score in found[-1] if len(found) == 1 else ():
            if cut := score.facts["truncated"]:
                say(
                    f"{score.task}: of {cut} of {score.questions} prompts the first tokens were left out; they are "
                    f"longer than the context of {model.context} tokens"
                )
        first = None if len(found) == 1 else found[0]
        with all_succeed():
            if jax.process_index() == 0:
                _write(output / name, name, results, found[-1], first)
    return found


def _ask(asked: Asked, model: LanguageModel) -> dict[str, Any]:
    """The results of lm-eval; its own bars and warnings are not shown."""
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    # It asks git, which complains to the terminal where there is no repository; the files say the same.
    evaluator.get_git_commit_hash = lambda: get_commit_from_path(Path.cwd())
    with contextlib.redirect_stderr(io.StringIO()):
        results: Any = evaluator.simple_evaluate(
            model,
            tasks=[one.whole for one in asked.benchmarks],
            num_fewshot=asked.shots,
            limit=asked.limit,
            bootstrap_iters=0,  # in processes it may wait for ever for JAX; standard errors are ours
            task_manager=manager,
            confirm_run_unsafe_code=asked.sandbox is not None,
        )
    for task, samples in results["samples"].items():
        figures = results["results"][task]
        for metric in {name for name in figures if f"{name.split(',')[0]}_stderr,{name.split(',')[-1]}" in figures}:
            name, _, filter = metric.partition(",")
            values = [sample[name] for sample in samples if sample["filter"] == filter and name in sample]
            if values and all(isinstance(value, int | float) for value in values):
                figures[f"{name}_stderr,{filter}"] = scores.known(scores.ratio(values).stderr)
    return results


def _score(
    one: Benchmark, results: dict[str, Any], model: LanguageModel, name: str, facts: Mapping[str, Any]
) -> TaskScore:
    """What a model scored; the questions of a group are scored together."""
    metric = one.metadata.get("score") or next(
        (m for m in ("acc", "exact_match") if m in one.tasks[0].higher_is_better()), ""
    )
    correct, nats, sizes, margin, every, guessed = [], [], [], [], [], 0.0
    for task in one.tasks:
        samples = results["samples"][task.task_name]
        samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]  # each question once
        samples.sort(key=lambda sample: sample["doc_id"])
        found = gold.measure(task, samples, model.language, model)
        for sample, bits, size in zip(samples, found.nats, found.bytes, strict=True):
            sample |= {"gold_nats": bits, "gold_bytes": size}
        correct += [float(sample[metric]) for sample in samples if metric]
        nats, sizes, margin = nats + found.nats, sizes + found.bytes, margin + gold.margins(task, samples)
        guessed += gold.chance(task, samples) * len(samples)
        every += samples
    first = one.tasks[0]
    texts = [[list(map(str, arguments)) for arguments in sample["arguments"]] for sample in every]
    return TaskScore(
        task=one.name,
        group=one.metadata.get("group", OTHER),
        model=name,
        metric=metric,
        chance=guessed / len(every),
        correct=correct,
        gold_nats=nats,
        gold_bytes=sizes,
        margin=margin,
        facts={
            **facts,
            "version": first.VERSION,
            "shots": first.config.num_fewshot or 0,
            "prompt_hash": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:_HASH],
            "truncated": sum(model.was_cut(sample["arguments"]) for sample in every),
            "cut": "from the left",
            **model.facts(),
            "lm_eval": __version__,
            "jax": jax.__version__,
            "platform": jax.default_backend(),
        },
    )


def _write(
    folder: Path, name: str, results: dict[str, Any], found: Sequence[TaskScore], first: Sequence[TaskScore] | None
) -> None:
    """results_DATE.json and samples_TASK_DATE.jsonl as lm-eval has them, and our records."""
    records = [score.record() for score in found]
    for record, score, other in zip(records, found, first or (), strict=False):
        values = {"to": other.model}
        for figure, value in scores.differences(score, other).items():
            values |= scores.flat(figure, value)
            values[f"{figure}_signal_over_noise"] = scores.known(value.signal_over_noise)
        record["difference"] = values
    samples = results.pop("samples")
    results["config"] |= {"model": name, "model_args": {name: found[0].facts.get(name) for name in _MODEL}}
    tracker = EvaluationTracker()
    tracker.general_config_tracker.log_experiment_args("wsm_jax", {"model": name}, None, None, False)
    with replaced(folder) as temporary:
        tracker.output_path = str(temporary / "results.json")
        before = len([*temporary.iterdir()])
        tracker.save_results_aggregated(results, samples)
        for task, own in samples.items():
            tracker.save_results_samples(task, own)
        if len([*temporary.iterdir()]) != before + 1 + len(samples):  # of what it cannot write it does not tell
            raise UsageError(f"{folder}: lm-eval could not write its results there")
        new = {record["task"] for record in records}
        old = [record for record in read_jsonl(temporary / scores.FILE) if record.get("task") not in new]
        write_jsonl(temporary / scores.FILE, [*old, *records])
