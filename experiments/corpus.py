"""The text of the paper's two phases as files that ``wsm`` reads: stable/ before the switch, anneal/ after it, eval/.

    python -m experiments.corpus --data=../shared/data --output=runs/corpus/all

`--data` is a folder of gzipped JSON lines: novels and Python enhancement proposals for the stable phase; textbooks,
mathematics and worked solutions (GSM8K's and MBPP's training parts, MATH's test set without MATH-500) for the annealing
phase. Each novel, proposal, chapter and solution is a document, and documents are what `wsm` splits into training,
validation and test. So that no passage is on two sides, a text of which COPY or more is in a longer one is left out,
texts that share SHARED or more of the shorter one are one document, and a text that shares as much with an answer that
is measured is left out.

eval/ has answers with their prompts, `wsm eval --answers=FILE`, which are never trained on: GSM8K's test set, MATH-500,
HumanEval, and of MMLU-Pro the text of the right option, given the question alone.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.overlap import joined, overlaps
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
COPY, SHARED = 0.5, 0.1  # of the passages of the shorter one of two texts
# data.validation_fraction and data.test_fraction: 15% in all, and of the 185 novels about 20 for test.
VALIDATION, TEST = 0.03, 0.12
LETTERS = "ABCDEFGHIJ"
Record = dict[str, Any]


class Text(NamedTuple):
    """A text under the name of its record."""

    name: str
    text: str


class Answer(NamedTuple):
    """An answer given its prompt, under the name of its record."""

    name: str
    prompt: str
    answer: str


def _text(record: Record) -> str:
    return record["text"]


def _solution(question: str, answer: str) -> Callable[[Record], str]:
    return lambda record: "".join(_answer(question, answer)(record))


def _answer(question: str, answer: str) -> Callable[[Record], tuple[str, str]]:
    return lambda record: (f"{record[question]}\n\n", f"{record[answer]}")


def _humaneval(record: Record) -> tuple[str, str]:
    return record["prompt"], record["canonical_solution"]


def _option(record: Record) -> tuple[str, str]:
    return f"{record['question']}\n\n", record["options"][LETTERS.index(record["answer"])]


# domain -> (file, what a record becomes), in the order of the tables
Domains = dict[str, list[tuple[str, Callable[[Record], Any]]]]
STABLE: Domains = {
    "novels": [("text/stable/english_novels", _text), ("text/stable/eltec_novels", _text)],
    "peps": [("text/stable/peps", _text)],
}
ANNEAL: Domains = {
    "textbooks": [("text/anneal/openstax", _text), ("text/anneal/d2l", _text)],
    "mathematics": [("text/anneal/stacks_project", _text)],
    "solutions": [
        ("anneal_qa/gsm8k_train", _solution("question", "answer")),
        ("anneal_qa/math_train4500", _solution("problem", "solution")),
        ("anneal_qa/mbpp_train", _solution("text", "code")),
    ],
}
EVAL: Domains = {
    "gsm8k": [("eval/gsm8k_test", _answer("question", "answer"))],
    "math500": [("eval/math500", _answer("problem", "solution"))],
    "humaneval": [("eval/humaneval", _humaneval)],
    "mmlu_pro": [("eval/mmlu_pro_test", _option)],
}
PHASES = {"stable": STABLE, "anneal": ANNEAL, "eval": EVAL}


def build(data: Path, output: Path, megabytes: float = 0.0, kilobytes: float = 0.0) -> Path:
    """Writes the corpus to ``output``, whole or not at all; one that is there stays.

    Args:
      data: the folder of the files named above.
      output: folder to be.
      megabytes: at most so many million characters of each domain, in the order of the documents' hashes; 0 = all.
      kilobytes: of each text the first so many thousand characters, up to a line end; 0 = all.

    Raises:
      UsageError: a file is missing, or ``output`` was made with other arguments or holds something else.
    """
    sources = [file for domains in PHASES.values() for files in domains.values() for file, _ in files]
    if missing := [file for file in sources if not (data / f"{file}.jsonl.gz").is_file()]:
        raise UsageError(
            f"{data / missing[0]}.jsonl.gz is not there; --data names the folder that holds text/ and eval/"
        )
    sizes = {file: (data / f"{file}.jsonl.gz").stat().st_size for file in sources}
    made = {"megabytes": megabytes, "kilobytes": kilobytes, "copy": COPY, "shared": SHARED, "sources": sizes}
    if (output / "corpus.json").is_file():
        there = read_json(output / "corpus.json")
        if {key: there.get(key) for key in made} != made:
            raise UsageError(f"{output} was made with {there}, now it is {made}; choose another --output")
        return output
    # corpus.json: another process may have built it just now.
    if output.is_dir() and any(output.iterdir()) and not (output / "corpus.json").is_file():
        raise UsageError(f"{output} holds other files and no corpus; choose another --output")
    limit = round(megabytes * 1e6)
    with published(output) as folder:
        counts: dict[str, dict[str, Any]] = {}
        answers = {}
        for domain, files in EVAL.items():
            answers[domain] = _first([Answer(name, *found) for name, found in _read(data, files)], limit)
            counts[f"eval/{domain}"] = {"answers": len(answers[domain])}
            _write(folder / "eval" / f"{domain}.jsonl.gz", answers[domain])
        measured = [answer.prompt + answer.answer for found in answers.values() for answer in found]
        for phase, domains in (("stable", STABLE), ("anneal", ANNEAL)):
            for domain, files in domains.items():
                texts = [Text(name, _beginning(text, round(kilobytes * 1e3))) for name, text in _read(data, files)]
                documents, about = _documents(texts, measured)
                documents = _first(documents, limit)
                size = sum(len(document.text) for document in documents)
                counts[f"{phase}/{domain}"] = {**about, "documents": len(documents), "characters": size}
                _write(folder / phase / f"{domain}.jsonl.gz", documents)
        write_json(folder / "corpus.json", {**made, "counts": counts})
    return output


def _read(data: Path, files: list[tuple[str, Callable[[Record], Any]]]) -> Iterator[tuple[str, Any]]:
    """The name of each record, its id or where it stands, and what it becomes."""
    for file, become in files:
        path = data / f"{file}.jsonl.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        record = json.loads(line)
                        found = become(record)
                        if not "".join(found).strip():
                            continue
                        yield str(record.get("id", f"{path.name.split('.')[0]}:{number}")), found
                    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                        raise UsageError(
                            f"{path}, line {number}: {type(error).__name__}: {error} (`python -m experiments.corpus "
                            "--help` lists the fields)"
                        ) from error
        except (EOFError, UnicodeError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{path}: {error}") from error


def _beginning(text: str, limit: int) -> str:
    return text[: text.rfind("\n", 0, limit) + 1 or limit] if 0 < limit < len(text) else text


def _documents(texts: Sequence[Text], measured: Sequence[str]) -> tuple[list[Text], dict[str, int]]:
    """Documents that share nothing worth the name with each other, nor with what is measured; and what became of them.

    Returns:
      documents, and counts: ``texts`` before, ``copies`` and ``measured`` left out, ``joined`` with others.
    """
    texts = list({text.text: text for text in reversed(texts)}.values())[::-1]
    count = len(texts)
    shared = overlaps([*(text.text for text in texts), *measured])
    asked = {i for (i, j), share in shared.items() if i < count <= j and share >= SHARED}
    copies = {
        min(pair, key=lambda number: len(texts[number].text))
        for pair, share in shared.items()
        if pair[1] < count and share >= COPY
    } - asked
    kept = [number for number in range(count) if number not in asked | copies]
    place = {number: at for at, number in enumerate(kept)}
    pairs = [(place[i], place[j]) for (i, j), share in shared.items() if share >= SHARED and i in place and j in place]
    groups = [[texts[kept[at]] for at in group] for group in joined(len(kept), pairs)]
    documents = [Text("+".join(t.name for t in group), "\n\n".join(t.text for t in group)) for group in groups]
    together = sum(len(group) for group in groups if len(group) > 1)
    return documents, {"texts": count, "copies": len(copies), "measured": len(asked), "joined": together}


def _first(found: Sequence[Any], limit: int) -> list[Any]:
    """Different texts or answers in the order of their hashes, as many as fit in ``limit`` characters (0 = all)."""
    # Not the hash that decides the split, or the first ones would all be of one.
    hashed = {hashlib.sha256(f"order {''.join(one[1:])}".encode()).digest(): one for one in found}
    ordered = [one for _, one in sorted(hashed.items())]
    ends = itertools.accumulate(len("".join(one[1:])) for one in ordered)
    return [one for one, end in zip(ordered, ends, strict=True) if not limit or end <= limit]


def _write(file: Path, found: Sequence[Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"id": one.name, **dict(zip(one._fields[1:], one[1:], strict=True))}) + "\n" for one in found]
    file.write_bytes(gzip.compress("".join(lines).encode(), 6, mtime=0))  # equal text, equal bytes


def mixture(corpus: Path, phase: str, weights: dict[str, float]) -> str:
    """``data.source`` of a phase: its domains by weight, 1 where none is given."""
    return ",".join(f"text:{corpus / phase / domain}.jsonl.gz={weights.get(domain, 1.0):g}" for domain in PHASES[phase])


def answers(corpus: Path) -> dict[str, str]:
    """``Measure.answers``: domain -> file."""
    return {domain: str(corpus / "eval" / f"{domain}.jsonl.gz") for domain in EVAL}


def main() -> int:
    """Builds the corpus of the command line and says what is in it."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog=SOURCES, formatter_class=form)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: ../shared/data")
    parser.add_argument("--output", type=Path, required=True, help="folder to be")
    parser.add_argument("--megabytes", type=float, default=0.0, help="of each domain at most; default: all")
    parser.add_argument("--kilobytes", type=float, default=0.0, help="the first so many of each text; default: all")
    options = parser.parse_args()
    folder = build(options.data, options.output, options.megabytes, options.kilobytes)
    print((folder / "corpus.json").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(ended("corpus", main))
