"""How much a corpus holds: documents of each split, and answers that do not fit a context, for the committed record.

    python -m experiments.corpus_counts --corpus=runs/corpus/all [--output=results/corpus]

The vocabularies are trained as `wsm` trains them, on what the stable phase trains on.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.corpus import ANNEAL, STABLE, TEST, VALIDATION, answers
from wsm_jax.data.store import SPLITS, split_of
from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.errors import ended
from wsm_jax.evaluation.answers import encode, read
from wsm_jax.io.files import read_json, write_json, write_text
from wsm_jax.reporting.tables import markdown_table

VOCABULARIES = (1024, 4096)
CONTEXTS = (128, 1024)


def splits(corpus: Path) -> dict[str, dict[str, int]]:
    """``PHASE/DOMAIN`` -> split -> documents."""
    found = {}
    for phase, domains in (("stable", STABLE), ("anneal", ANNEAL)):
        for domain in domains:
            there = Counter(split_of(text, VALIDATION, TEST) for text in _texts(corpus / phase / f"{domain}.jsonl.gz"))
            found[f"{phase}/{domain}"] = {split: there[split] for split in SPLITS}
    return found


def left_out(corpus: Path) -> dict[str, dict[str, int]]:
    """``BPE at CONTEXT`` -> domain -> answers that do not fit with their prompts."""
    items = {domain: read(file) for domain, file in answers(corpus).items()}
    files = [corpus / "stable" / f"{domain}.jsonl.gz" for domain in STABLE]
    found: dict[str, dict[str, int]] = {}
    for size in VOCABULARIES:
        trained_on = (text for file in files for text in _texts(file) if split_of(text, VALIDATION, TEST) == "train")
        tokenizer = train_bpe(trained_on, size)
        lengths = {domain: [len(t.ids) for t in encode(tokenizer, asked)] for domain, asked in items.items()}
        for context in CONTEXTS:
            found[f"bpe:{size} at {context}"] = {
                domain: sum(length > context for length in there) for domain, there in lengths.items()
            }
    return found


def _texts(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    counts = record["counts"]
    columns = ["texts", "copies", "measured", "joined", "documents", *SPLITS]
    of_text = [["domain", *columns, "characters"]]
    of_answers = [["domain", "answers", *(f"left out, {name}" for name in record["left_out"])]]
    for name, count in counts.items():
        phase, domain = name.split("/")
        if phase == "eval":
            cells = [f"{count['answers']:,}", *(f"{found[domain]:,}" for found in record["left_out"].values())]
            of_answers.append([domain, *cells])
        else:
            of_text.append([domain, *(f"{count[column]:,}" for column in columns), f"{count['characters']:,}"])
    lines = [
        "# The corpus of the experiments",
        "",
        f"`{record['command']}`",
        "",
        f"Each novel, proposal, chapter and solution is a document; {VALIDATION:.0%} are held out for validation and "
        f"{TEST:.0%} for test, by a hash of the text. *copies*: left out, as {record['copy']:.0%} or more of their "
        "passages of eight words are in a longer text. *measured*: left out, as they share "
        f"{record['shared']:.0%} or more with an answer and its prompt below. *joined*: texts that share as much with "
        "another one, with which they are one document.",
        "",
        *markdown_table(of_text),
        "",
        "Answers are measured given their prompts; those that do not fit the context are left out.",
        "",
        *markdown_table(of_answers),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes corpus.json and README.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what python -m experiments.corpus wrote")
    parser.add_argument("--output", type=Path, default=Path("results/corpus"), help="default: results/corpus")
    options = parser.parse_args()
    built = read_json(options.corpus / "corpus.json")
    command = "python -m experiments.corpus --output=runs/corpus/all"
    limits = "".join(f" --{name}={built[name]:g}" for name in ("megabytes", "kilobytes") if built[name])
    command = f"{command}{limits} && python -m experiments.corpus_counts --corpus=runs/corpus/all"
    for domain, found in splits(options.corpus).items():
        built["counts"][domain] |= found
    record = {"command": command, **built, "left_out": left_out(options.corpus)}
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "corpus.json", record)
    write_text(options.output / "README.md", page(record))
    print(options.output / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(ended("corpus_counts", main))
