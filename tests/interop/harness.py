"""``wsm eval --tasks`` beside lm-eval's own ``hf`` backend on an exported model: scores, log-probabilities, texts.

    python -m tests.interop.harness --peer=PYTHON --model=FOLDER --data=DIR --output=results/harness/equality.json

The model is a run, or a folder of transformers, which is imported. It is exported; ours answers from the run, the other
from the export. Of WikiText the first paragraphs are texts of their own. Float32; exit status 1 where accuracies or
texts differ, or log-probabilities by more than 1e-3.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from wsm_jax import Run, cli
from wsm_jax.evaluation import evaluate
from wsm_jax.io import machine
from wsm_jax.io.files import write_json

PEER = Path(__file__).parent / "harness_peer.py"
TEXTS = Path(__file__).parent / "gsm8k_text.yaml"
TASKS = ("arc_easy", "piqa", "winogrande", "boolq", "mmlu", "wikitext", str(TEXTS))
TOLERANCE = 1e-3
CONTEXT = 1024  # of a model that is imported


def data(source: Path, folder: Path, limit: int) -> Path:
    """The files of the tasks, and paragraphs of WikiText in the place of its articles."""
    folder.mkdir()
    for file in source.glob("*.jsonl*"):
        if not file.name.startswith("wikitext"):
            (folder / file.name).symlink_to(file.resolve())
    (file,) = source.glob("wikitext*.jsonl.gz")
    text = json.loads(gzip.open(file, "rt").readline())["text"]
    lines = [line for line in text.splitlines() if len(line) > 200][:limit]
    (folder / "wikitext.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


def ours(folder: Path) -> dict[str, Any]:
    """Task -> metrics and answers, from the files that ``wsm eval`` has written in lm-eval's format."""
    (file,) = folder.glob("results_*.json")
    results, found = json.loads(file.read_text())["results"], {}
    for task, metrics in results.items():
        (file,) = folder.glob(f"samples_{task}_*.jsonl")
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        found[task] = {
            "metrics": {name: value for name, value in metrics.items() if isinstance(value, float)},
            "prompts": [[one["arg_0"] for one in sample["arguments"].values()] for sample in samples],
            "resps": [[answer[0] for answer in sample["resps"]] for sample in samples],
        }
    return found


def compare(task: str, one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    assert one["prompts"] == other["prompts"], f"{task}: other prompts"
    accuracies = [{k: v for k, v in each["metrics"].items() if k.startswith(("acc", "exact"))} for each in (one, other)]
    accuracies = [{k: v for k, v in each.items() if "stderr" not in k} for each in accuracies]
    row: dict[str, Any] = {"task": task, "documents": len(one["resps"]), "ours": accuracies[0], "hf": accuracies[1]}
    pairs = [pair for a, b in zip(one["resps"], other["resps"], strict=True) for pair in zip(a, b, strict=True)]
    row["requests"] = len(pairs)
    if task == "gsm8k_text":
        return {**row, "texts_equal": sum(a == b for a, b in pairs)}
    values = [(_number(a), _number(b)) for a, b in pairs]
    greedy = [a[1] == str(b[1]) for a, b in pairs if isinstance(b, list)]
    return {
        **row,
        "largest": max(abs(b) for _, b in values),
        "difference": max(abs(a - b) for a, b in values),
        "likeliest_equal": sum(greedy) if greedy else None,
    }


def _number(answer: Any) -> float:
    return float(answer[0] if isinstance(answer, list) else answer)


def is_equal(row: dict[str, Any]) -> bool:
    """Whether a line of the table holds what it should."""
    texts = row.get("texts_equal", row["requests"]) == row["requests"]
    return row["ours"] == row["hf"] and row.get("difference", 0) <= TOLERANCE and texts


def main() -> int:
    """Measures, writes the table, says whether all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="a Python with torch, transformers and lm_eval")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--limit", default=100, type=int)
    parser.add_argument("--work", type=Path, help="a folder that is kept (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(exist_ok=True)
        is_run = (options.model / "run.json").is_file()
        run = options.model if is_run else work / "run"
        if not (work / "exported").exists():
            data(options.data, work / "data", options.limit)
            if not is_run:
                assert cli.main(["import", str(options.model), f"--output={run}", f"--context={CONTEXT}"]) == 0
            assert cli.main(["export", f"--run={run}", f"--output={work / 'exported'}"]) == 0
        context, parameters = evaluate.model_of(Run(run)).config.context, Run(run).facts["parameters"]
        asked = [f"--tasks={','.join(TASKS)}", f"--limit={options.limit}"]
        if not [*work.glob("ours/*")]:
            of = ["eval", f"--run={run}", f"--tasks_data={work / 'data'}", f"--output={work / 'ours'}"]
            assert cli.main([*of, *asked]) == 0
        there = [f"--data={work / 'data'}", f"--context={context}", f"--output={work / 'hf.json'}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [options.peer, str(PEER), str(work / "exported"), *asked, *there]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        (folder,) = (work / "ours").iterdir()
        mine, theirs = ours(folder), json.loads((work / "hf.json").read_text())
        rows = [compare(task, mine[task], theirs[task]) for task in theirs]
    found = {
        "model": options.model.name,
        "parameters": parameters,
        "context": context,
        "limit": options.limit,
        "tolerance": TOLERANCE,
        "peer": json.loads(done.stdout.splitlines()[-1]),
        **{name: value for name, value in machine.environment().items() if name != "command"},  # of one machine's paths
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, found)
    print("\n".join(map(json.dumps, rows)))
    return 0 if all(map(is_equal, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
