"""What a piece leaves: records.jsonl, nats.npz and documents.json; and the same of all pieces together."""

import dataclasses
import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.config import config_id
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.evaluate import Evaluation
from wsm_jax.io import files
from wsm_jax.sweeps.plan import Piece, Plan

RECORDS, NATS, DOCUMENTS, ASKED = "records.jsonl", "nats.npz", "documents.json", "piece.json"
Record = dict[str, Any]
# What records of one seed have in common, or their losses are not paired.
SAME = ("wsm_jax", "versions", "python", "machine", "platform")


@dataclasses.dataclass(frozen=True)
class Results:
    """Measured arms.

    Attributes:
      records: one for each arm and seed.
      nats: ``ARM|SEED`` -> float32 [documents], of each test document.
      documents: ``data_hash``, ``domains``, and for each document its ``domain`` (an index), ``tokens`` and ``bytes``;
        ``left_out``: of each domain, how many were not measured.
    """

    records: list[Record]
    nats: dict[str, np.ndarray]
    documents: dict[str, Any]


def of_test(evaluations: Mapping[str, Evaluation]) -> tuple[np.ndarray, dict[str, Any]]:
    """Nats of each test document, float32, and what the documents are, from ``test/DOMAIN`` -> Evaluation."""
    found = {name.removeprefix("test/"): one for name, one in evaluations.items() if name.startswith("test/")}
    documents = {
        "data_hash": hashlib.sha256(json.dumps([e.data_hash for e in found.values()]).encode()).hexdigest()[:12],
        "domains": list(found),
        "domain": [number for number, one in enumerate(found.values()) for _ in one.tokens],
        "tokens": [int(count) for one in found.values() for count in one.tokens],
        "bytes": [int(size) for one in found.values() for size in one.bytes],
        "left_out": {name: int(getattr(one, "left_out", 0)) for name, one in found.items()},
    }
    return np.concatenate([one.nats for one in found.values()]).astype(np.float32), documents


def bits_per_byte(nats: np.ndarray, documents: Mapping[str, Any]) -> dict[str, float]:
    """Domain -> nats of its documents / ln 2 / their bytes."""
    domain, sizes = np.asarray(documents["domain"]), np.asarray(documents["bytes"])
    return {
        name: float(nats[domain == number].sum(dtype=np.float64) / math.log(2) / sizes[domain == number].sum())
        for number, name in enumerate(documents["domains"])
    }


# --- of one piece ----------------------------------------------------------------------------------------------------


def asked(plan: Plan, piece: Piece) -> dict[str, Any]:
    """What the records of a piece depend on; others than these are made anew."""
    experiment = plan.experiment
    return {
        "experiment": experiment.name,
        "runs": {name: [config_id(run.config), run.branch_step, run.params_from] for name, run in piece.runs.items()},
        "arms": {name: dataclasses.asdict(experiment.arms[name]) for name in piece.readings},
        "measure": dataclasses.asdict(experiment.measure),
    }


def is_done(plan: Plan, piece: Piece) -> bool:
    """Whether a piece has the records that are asked for."""
    if not (piece.folder / RECORDS).is_file():
        return False
    return files.json_or_none(piece.folder / ASKED) == json.loads(json.dumps(asked(plan, piece)))


def write_piece(plan: Plan, piece: Piece, results: Results) -> None:
    """Writes what a piece leaves; its records come last, so that they tell that it is done."""
    folder = piece.folder
    (folder / RECORDS).unlink(missing_ok=True)
    files.write_json(folder / ASKED, asked(plan, piece))
    write(folder, results)


def write(folder: Path, results: Results) -> None:
    """Writes results into a folder, each file whole or not at all, the records last."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder / NATS) as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, **results.nats)  # pyrefly: ignore
    files.write_text(folder / DOCUMENTS, json.dumps(results.documents) + "\n")
    files.write_jsonl(folder / RECORDS, results.records)


def read(folder: Path) -> Results:
    """What :func:`write` wrote.

    Raises:
      UsageError: a file that is missing or damaged, or records without the nats of their documents.
    """
    records, documents = files.read_jsonl(folder / RECORDS), files.read_json(folder / DOCUMENTS)
    try:
        with (folder / NATS).open("rb") as file, np.load(file) as stored:
            nats = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{folder / NATS}: cannot be read ({error})") from error
    if lacking := {"domains", "domain", "bytes"} - {*documents}:
        raise UsageError(f"{folder / DOCUMENTS} lacks {', '.join(sorted(lacking))}")
    for record in records:
        if key(record) not in nats:
            raise UsageError(f"{folder / NATS} has no {key(record)!r}, of which {RECORDS} has a record")
    return Results(records, nats, documents)


def key(record: Mapping[str, Any]) -> str:
    """``ARM|SEED``."""
    return f"{record['arm']}|{record['seed']}"


# --- of all pieces ---------------------------------------------------------------------------------------------------


def gather(plan: Plan, pieces: Iterable[Piece]) -> Results:
    """The results of pieces that are done.

    Raises:
      UsageError: as :func:`read` and :func:`check`; pieces that were measured on other documents.
    """
    records: list[Record] = []
    nats: dict[str, np.ndarray] = {}
    documents: dict[str, Any] = {}
    for piece in pieces:
        found = read(piece.folder)
        if documents and found.documents != documents:
            raise UsageError(f"{piece.folder} was measured on other test documents than the pieces before it")
        records, nats, documents = [*records, *found.records], {**nats, **found.nats}, found.documents
    check(plan, records)
    return Results(records, nats, documents)


def check(plan: Plan, records: Sequence[Record], here: Mapping[int, Record] | None = None) -> None:
    """Raises UsageError for records that are not of this sweep, or of arms that cannot be paired, naming them.

    Args:
      plan: of the sweep.
      records: of some pieces.
      here: seed -> what is known of the records of its other pieces, which are to be made here.
    """
    first: dict[int, Record] = {}
    for record in records:
        place, seed = plan.output / "pieces" / record["piece"], record["seed"]
        if record["experiment"] != plan.experiment.name:
            raise UsageError(f"{place} holds records of {record['experiment']!r}; choose another --output")
        other = first.setdefault(seed, {**record, **(here or {}).get(seed, {})})
        if wrong := next((name for name in SAME if record[name] != other[name]), None):
            raise UsageError(
                f"{record['arm']!r} of seed {seed} was measured with {wrong} {_short(record[wrong])}, other arms with "
                f"{_short(other[wrong])}: they cannot be paired; remove {place}, and it is measured again"
            )


def _short(value: Any) -> str:
    return " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
