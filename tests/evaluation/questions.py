"""A small imported run, questions in files of the packaged tasks, and the command that asks them."""

import gzip
import json
from pathlib import Path
from typing import Any

from tests.interchange.folders import LLAMA, ROWS, arrays, make
from wsm_jax import cli
from wsm_jax.evaluation import scores

CONTEXT = 64
VALUES = {**LLAMA, "hidden_size": 16, "max_position_embeddings": CONTEXT, "vocab_size": ROWS}
QUESTIONS = [
    {"query": f"Question: Is {i} a walk?\nAnswer:", "choices": ["a step", "a long walk", "nothing"], "gold": i % 3}
    for i in range(12)
]
MMLU = [
    {
        "question": f"What is {i} of many?",
        "subject": ("steps", "long_walks")[i % 2],
        "choices": [*"wxyz"],
        "answer": i % 4,
    }
    for i in range(8)
]
BLANK = [
    {
        "sentence": f"The walk {i} is a step but _ is small",
        "option1": "this",
        "option2": "that",
        "answer": f"{i % 2 + 1}",
    }
    for i in range(4)
]
ARTICLES = [
    {"text": " \n = One = \n \n A small step . \n = = Part = = \n A long walk . \n = Two = \n \n Number 2 of many \n"}
]
FILES = {
    "arc_easy": QUESTIONS,
    "mmlu": MMLU,
    "mmlu_dev": MMLU[::-1] + MMLU[:4],
    "winogrande": BLANK,
    "wikitext": ARTICLES,
}


def write(folder: Path) -> Path:
    """A run of three checkpoints that was imported, and the files of some tasks, into a folder."""
    for step in (100, 200, 300):
        make(folder / "there" / f"step{step}", VALUES, arrays(VALUES, seed=step))
    assert cli.main(["import", str(folder / "there"), f"--output={folder / 'run'}"]) == 0
    (folder / "data").mkdir()
    for number, (name, records) in enumerate(FILES.items()):
        text = "".join(json.dumps(record) + "\n" for record in records)
        if number % 2:
            (folder / "data" / f"{name}.jsonl").write_text(text)
        else:
            (folder / "data" / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def command(place: Path, output: Path, *arguments: str) -> list[str]:
    return ["eval", f"--run={place / 'run'}", f"--tasks_data={place / 'data'}", f"--output={output}", *arguments]


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Task -> record of our format."""
    return {record["task"]: record for record in map(json.loads, (folder / scores.FILE).read_text().splitlines())}
