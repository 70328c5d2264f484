"""The text of the main experiment: old text, new text, their mixtures, and what arms are measured on."""

import dataclasses
import gzip
import os
from pathlib import Path
from typing import Any

from configs import standard
from experiments import corpus
from wsm_jax.config import DataConfig
from wsm_jax.data import tokens
from wsm_jax.errors import UsageError
from wsm_jax.io.files import replacing
from wsm_jax.sweeps import Measure

# Weights of the domains within old and within new text.
OLD = {"novels": 0.8, "peps": 0.2}
NEW = {"textbooks": 0.4, "mathematics": 0.2, "solutions": 0.4}
# Million characters of each domain, and of each text the first so many thousand, which leave documents to hold out.
LIMITS = {"standard": (0.0, 0.0), "tiny": (3.0, 20.0)}  # 0: all
ANSWERS = 1500  # of a domain: hundreds of arms are measured on them
TOKENS = {"standard": (50_000, 100_000, 4096), "tiny": (2_000, 4_000, 512)}  # validation, test, of each document


@dataclasses.dataclass(frozen=True)
class Text:
    """Fields of the configuration for each mixture, and the measure.

    Attributes:
      stable_only: old text alone.
      some_new: a tenth of new text.
      half_new: from the switch on, half of each.
      all_new: from the switch on, new text alone.
      measure: every domain of both, whatever a run was trained on, and answers given their questions.
    """

    stable_only: dict[str, Any]
    some_new: dict[str, Any]
    half_new: dict[str, Any]
    all_new: dict[str, Any]
    measure: Measure


def text(scale: str) -> Text:
    """The text of a scale, made now where it is not there: the corpus at runs/corpus/SCALE, its tokenizer beside it.

    Raises:
      UsageError: the folder of text that $WSM_EXPERIMENT_DATA names (default ../shared/data) is not there.
    """
    place = Path("runs") / "corpus" / scale
    if not (place / "corpus.json").is_file():  # it may have been built elsewhere and copied here
        data = Path(os.environ.get("WSM_EXPERIMENT_DATA", "../shared/data"))
        if not (data / "text").is_dir():
            raise UsageError(
                f"{data} holds no text/; name a folder of text in WSM_EXPERIMENT_DATA (python -m experiments.corpus "
                "--help lists its files and where they are from)"
            )
        corpus.build(data, place, *LIMITS[scale])

    def mixture(old: float, new: float) -> str:
        parts = {
            **{f"stable/{domain}": old * weight for domain, weight in OLD.items() if old},
            **{f"anneal/{domain}": new * weight for domain, weight in NEW.items() if new},
        }
        return ",".join(f"text:{place / file}.jsonl.gz={weight:g}" for file, weight in parts.items())

    # One tokenizer for all mixtures, trained on old text, so that every arm is measured on the same tokens.
    config = dataclasses.replace(standard.get_config(scale).data, source=mixture(1.0, 0.0))
    settings = {"data.tokenizer": str(_tokenizer(config))}
    validation, test, document = TOKENS[scale]
    return Text(
        settings | {"data.source": mixture(1.0, 0.0)},
        settings | {"data.source": mixture(0.9, 0.1)},
        {"data.switch_source": mixture(0.5, 0.5)},
        {"data.switch_source": mixture(0.0, 1.0)},
        Measure(
            validation_tokens=validation,
            test_tokens=test,
            document_tokens=document,
            sources=mixture(0.5, 0.5),
            answers={domain: str(_some(Path(file))) for domain, file in corpus.answers(place).items()},
        ),
    )


def _some(file: Path) -> Path:
    """At most ANSWERS of the answers in a file, evenly spread over it, in a file of their own."""
    found = file.parent / "some" / file.name
    if not found.is_file():
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            every = list(lines)
        found.parent.mkdir(exist_ok=True)
        with replacing(found) as made, gzip.open(made, "wt", encoding="utf-8") as out:
            out.writelines(every[:: -(-len(every) // ANSWERS)])
    return found


def _tokenizer(config: DataConfig) -> Path:
    return tokens.prepare(config, progress=True).stable[0][0].path / "tokenizer.json"
