"""The side of lm-eval's own ``hf`` backend, with PyTorch in an environment of its own: what a folder answers to tasks.

    python tests/interop/harness_peer.py MODEL --tasks=NAME,... --data=DIR --limit=N --context=N --output=FILE

Needs nothing of ours but the task files and what reads their data. The last line printed is what it ran on, as JSON.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval import __version__
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from wsm_jax.evaluation.task_files import FOLDER


def main() -> None:
    """Asks and writes task -> metrics and the answers to its questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("tasks", "data", "limit", "context", "output"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    found: Any = simple_evaluate(
        "hf",
        model_args={
            "pretrained": options.model,
            "dtype": "float32",
            "max_length": int(options.context),
            "device": "cpu",
            "batch_size": 8,
        },
        tasks=options.tasks.split(","),
        limit=int(options.limit),
        bootstrap_iters=0,
        task_manager=TaskManager(
            include_path=str(FOLDER), include_defaults=False, metadata={"tasks_data": options.data}
        ),
    )
    answers = {
        task: {
            "metrics": {name: value for name, value in found["results"][task].items() if isinstance(value, float)},
            "prompts": [[argument[0] for argument in sample["arguments"]] for sample in samples],
            "resps": [[answer[0] for answer in sample["resps"]] for sample in samples],
        }
        for task, samples in found["samples"].items()
    }
    Path(options.output).write_text(json.dumps(answers))
    versions = {"lm_eval": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**versions, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
