"""The text of the paper's two phases as files that ``wsm`` reads: stable/ before the switch, anneal/ after it, eval/.

    python -m experiments.corpus --data=../shared/data --output=runs/corpus/small --megabytes=6

`--data` is a folder of gzipped JSON lines: novels and Python enhancement proposals for the stable phase; textbooks,
mathematics and worked solutions (GSM8K's and MBPP's training parts, MATH's test set without MATH-500) for the annealing
phase; and question with solution from GSM8K's test set, MATH-500, HumanEval and MMLU-Pro, which are never trained on.
All longer texts (novels, proposals, textbook chapters, mathematics) are cut into passages of about 2 kB at line ends,
so that held-out passages come from many of them: other passages of the same text are in the training split, and a few
lines (1 to 3% of the text) are on both sides.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError, ended
from wsm_jax.io.files import read_json, write_json
from wsm_jax.io.publish import published

SOURCES = """\
The folder of --data holds gzipped JSON lines, one object a line, under these names (each with .jsonl.gz); behind the
fields the number of records that the committed results come from:

  text/stable/english_novels  {text} 98      100 English novels (public domain)
                                             github.com/computationalstylistics/100_english_novels
  text/stable/eltec_novels    {text} 89      ELTeC-eng, plain text (public domain), github.com/COST-ELTeC/ELTeC-eng
  text/stable/peps            {text} 703     Python enhancement proposals (public domain, CC0), github.com/python/peps
  text/anneal/openstax        {text} 1611    OpenStax textbooks, chapters (CC BY 3.0), openstax.org
  text/anneal/d2l             {text} 191     Dive into Deep Learning, English (CC BY-SA 4.0), github.com/d2l-ai/d2l-en
  text/anneal/stacks_project  {text} 117     the Stacks Project, LaTeX (GFDL 1.2), github.com/stacks/stacks-project
  anneal_qa/gsm8k_train       {question, answer} 7473   GSM8K, training part (MIT)
                                             github.com/openai/grade-school-math
  anneal_qa/math_train4500    {problem, solution} 4500  MATH, test part without MATH-500 (MIT)
                                             github.com/hendrycks/math
  anneal_qa/mbpp_train        {text, code} 374          MBPP, tasks 601 to 974 (CC BY 4.0)
                                             github.com/google-research/google-research/tree/master/mbpp
  eval/gsm8k_test             {question, answer} 1319   GSM8K, test part (MIT)
  eval/math500                {problem, solution} 500   MATH-500 (MIT), huggingface.co/datasets/HuggingFaceH4/MATH-500
  eval/humaneval              {prompt, canonical_solution} 164   HumanEval (MIT), github.com/openai/human-eval
  eval/mmlu_pro_test          {question, options, answer} 12032  MMLU-Pro, test part (Apache-2.0)
                                             huggingface.co/datasets/TIGER-Lab/MMLU-Pro

Other fields are ignored; other text under the same names and fields serves as well. Whether yours is what the pages are
of is told by the hash of the data that each of them names.
"""
PASSAGE = 2048  # characters, about
LETTERS = "ABCDEFGHIJ"
Record = dict[str, Any]
Documents = Callable[[Record], Iterator[str]]


def _text(record: Record) -> Iterator[str]:
    yield from passages(record["text"])


def _solution(question: str, answer: str) -> Documents:
    def read(record: Record) -> Iterator[str]:
        yield f"{record[question]}\n\n{record[answer]}"

    return read


def _humaneval(record: Record) -> Iterator[str]:
    yield record["prompt"] + record["canonical_solution"]


def _choice(record: Record) -> Iterator[str]:
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, record["options"], strict=False)]
    yield "\n".join([record["question"], *options, f"Answer: {record['answer']}"])


# domain -> (file, how a record becomes documents), in the order of the tables
STABLE = {
    "novels": [("text/stable/english_novels", _text), ("text/stable/eltec_novels", _text)],
    "peps": [("text/stable/peps", _text)],
}
ANNEAL = {
    "textbooks": [("text/anneal/openstax", _text), ("text/anneal/d2l", _text)],
    "mathematics": [("text/anneal/stacks_project", _text)],
    "solutions": [
        ("anneal_qa/gsm8k_train", _solution("question", "answer")),
        ("anneal_qa/math_train4500", _solution("problem", "solution")),
        ("anneal_qa/mbpp_train", _solution("text", "code")),
    ],
}
EVAL = {
    "gsm8k": [("eval/gsm8k_test", _solution("question", "answer"))],
    "math500": [("eval/math500", _solution("problem", "solution"))],
    "humaneval": [("eval/humaneval", _humaneval)],
    "mmlu_pro": [("eval/mmlu_pro_test", _choice)],
}
PHASES = {"stable": STABLE, "anneal": ANNEAL, "eval": EVAL}


def passages(text: str) -> Iterator[str]:
    """``text`` in parts of about PASSAGE characters, cut at line ends; joined they are the text again."""
    part: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        part.append(line)
        size += len(line)
        if size >= PASSAGE:
            yield "".join(part)
            part, size = [], 0
    if part:
        yield "".join(part)


def build(data: Path, output: Path, megabytes: float) -> Path:
    """Writes the corpus to ``output``, whole or not at all; one that is there stays.

    Args:
      data: the folder of the files named above.
      output: folder to be.
      megabytes: at most so many million characters of each domain, in the order of the documents' hashes; 0 = all.

    Raises:
      UsageError: a file is missing, or ``output`` was made with other arguments or holds something else.
    """
    sources = [file for domains in PHASES.values() for files in domains.values() for file, _ in files]
    if missing := [file for file in sources if not (data / f"{file}.jsonl.gz").is_file()]:
        raise UsageError(
            f"{data / missing[0]}.jsonl.gz is not there; --data names the folder that holds text/ and eval/"
        )
    sizes = {file: (data / f"{file}.jsonl.gz").stat().st_size for file in sources}
    made = {"megabytes": megabytes, "passage": PASSAGE, "sources": sizes}
    if (output / "corpus.json").is_file():
        there = read_json(output / "corpus.json")
        if {key: there.get(key) for key in made} != made:
            raise UsageError(f"{output} was made with {there}, now it is {made}; choose another --output")
        return output
    # corpus.json: another process may have built it just now.
    if output.is_dir() and any(output.iterdir()) and not (output / "corpus.json").is_file():
        raise UsageError(f"{output} holds other files and no corpus; choose another --output")
    with published(output) as folder:
        counts = {}
        for phase, domains in PHASES.items():
            (folder / phase).mkdir()
            for domain, files in domains.items():
                chosen = _first(_texts(data, files), round(megabytes * 1e6))
                counts[f"{phase}/{domain}"] = {"documents": len(chosen), "characters": sum(map(len, chosen))}
                lines = [json.dumps({"id": f"{domain}-{n}", "text": text}) + "\n" for n, text in enumerate(chosen)]
                file = folder / phase / f"{domain}.jsonl.gz"
                file.write_bytes(gzip.compress("".join(lines).encode(), 6, mtime=0))  # equal text, equal bytes
        write_json(folder / "corpus.json", {**made, "counts": counts})
    return output


def _texts(data: Path, files: list[tuple[str, Documents]]) -> Iterator[str]:
    for file, documents in files:
        path = data / f"{file}.jsonl.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        yield from documents(json.loads(line))
                    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
                        raise UsageError(
                            f"{path}, line {number}: {type(error).__name__}: {error} (`python -m experiments.corpus "
                            "--help` lists the fields)"
                        ) from error
        except (EOFError, UnicodeError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{path}: {error}") from error


def _first(texts: Iterable[str], limit: int) -> list[str]:
    """Different texts in the order of their hashes, as many as fit in ``limit`` characters (0 = all)."""
    # Not the hash that decides the split, or the first ones would all be of one.
    hashed = {hashlib.sha256(f"order {text}".encode()).digest(): text for text in texts if text.strip()}
    ordered = [text for _, text in sorted(hashed.items())]
    ends = itertools.accumulate(map(len, ordered))
    return [text for text, end in zip(ordered, ends, strict=True) if not limit or end <= limit]


def mixture(corpus: Path, phase: str, weights: dict[str, float]) -> str:
    """``data.source`` of a phase: its domains by weight, 1 where none is given."""
    return ",".join(f"text:{corpus / phase / domain}.jsonl.gz={weights.get(domain, 1.0):g}" for domain in PHASES[phase])


def main() -> int:
    """Builds the corpus of the command line and says what is in it."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog=SOURCES, formatter_class=form)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: ../shared/data")
    parser.add_argument("--output", type=Path, required=True, help="folder to be")
    parser.add_argument("--megabytes", type=float, default=0.0, help="of each domain at most; default: all")
    options = parser.parse_args()
    folder = build(options.data, options.output, options.megabytes)
    print((folder / "corpus.json").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(ended("corpus", main))
