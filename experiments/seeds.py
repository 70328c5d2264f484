"""Records of several seeds as tables: values by seed of whatever identifies an arm, and where they come from."""

import re
import statistics
from collections.abc import Iterable, Sequence

from experiments.intervals import interval
from experiments.protocol import Record
from wsm_jax.errors import UsageError

PASSAGES = ("novels", "peps", "textbooks", "mathematics")  # domains whose texts experiments/corpus.py cuts up
TEST = "test"  # the figure that is reported; what is picked by it is flagged


class Seeds:
    """Records by key, one value for each seed.

    Args:
      records: any order; one for each seed and key.
      fields: names of the fields that make up a key.
    """

    def __init__(self, records: Sequence[Record], *fields: str):
        ordered = sorted(records, key=lambda r: r["seed"])
        self._rows: dict[tuple, list[Record]] = {}
        for record in ordered:
            self._rows.setdefault(tuple(record[field] for field in fields), []).append(record)
        self.seeds = sorted({r["seed"] for r in records})
        for key, rows in self._rows.items():
            if (have := [r["seed"] for r in rows]) != self.seeds:
                raise UsageError(
                    f"{key} has the seeds {have}, others have {self.seeds}: remove the older pieces' folders"
                )
            if len({r.get("data_hash") for r in rows}) > 1:
                raise UsageError(f"{key} was measured on different text: remove the folders of the older pieces")
        for name in {"peak_lr", "wsd_peak_lr"} - set(fields):
            if len(found := {r.get(name) for r in records}) > 1:
                raise UsageError(f"records of different peak rates {found}: remove the folder of the older pieces")

    def names(self, figure: str) -> list[str]:
        """The entries of a field such as ``domains``."""
        return list(next(iter(self._rows.values()))[0][figure])

    def __contains__(self, key: tuple) -> bool:
        return key in self._rows

    def of(self, key: tuple, figure: str = TEST, names: Sequence[str] = ()) -> list[float]:
        """A field by seed; with ``names``, the mean over these entries of it (``domains``, ``validation_domains``)."""
        rows = self._rows[key]
        return [statistics.fmean(row[figure][name] for name in names) if names else row[figure] for row in rows]

    def mean(self, key: tuple, figure: str = TEST, names: Sequence[str] = ()) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.of(key, figure, names))

    def minus(self, first: tuple, second: tuple, figure: str = TEST, names: Sequence[str] = ()) -> list[float]:
        """``first`` minus ``second``, paired by seed."""
        return [a - b for a, b in zip(self.of(first, figure, names), self.of(second, figure, names), strict=True)]

    def best(self, keys: Iterable[tuple], figure: str = "validation", names: Sequence[str] = ()) -> tuple:
        """The key with the lowest mean over seeds."""
        return min(keys, key=lambda key: self.mean(key, figure, names))


def plus_minus(values: Sequence[float], digits: int = 4) -> str:
    """``mean ± half width`` of losses."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def source(records: Sequence[Record]) -> str:
    """A sentence of what a page's records depend on."""
    sizes = " and ".join(f"{size:,}" for size in sorted({r["parameters"] for r in records}))
    seconds = sum({record["piece"]: record["piece_seconds"] for record in records}.values())
    return (
        f"{sizes} parameters, {len({r['seed'] for r in records})} seeds, mean ± 95% (Student's t over "
        f"seeds, differences paired); `{command(records)}`; {machines(records)}; config "
        f"{_first(records, 'config_hash')}, data {_first(records, 'data_hash')}; {seconds / 60:.0f} minutes of "
        "processes, with any shared runs that were missing." + documents(records)
    )


def _first(records: Sequence[Record], name: str) -> str:
    """The first record's hash, and of how many other runs there are."""
    found = dict.fromkeys(record[name][:12] for record in records)
    others = f" (and {len(found) - 1} more, each beside what it measured, in records.jsonl)" if len(found) > 1 else ""
    return next(iter(found)) + others


def command(records: Sequence[Record]) -> str:
    """What makes the page, where its pieces were perhaps done by several commands with ``--only``."""
    return re.sub(r" --(only|parallel|results|output)[= ]\S+", "", records[0]["command"])


def machines(records: Sequence[Record]) -> str:
    """Every machine, Python and jax that records come from."""
    found = {f"{r['machine']}, Python {r['python']}, jax {r['versions']['jax']}": None for r in records}
    return " and ".join(found)


def documents(records: Sequence[Record]) -> str:
    """How many documents the losses are of, and what that leaves out of the intervals; empty where there are none."""
    counts = records[0].get("test_documents")
    if not counts:
        return ""
    each = ", ".join(f"{name} {count}" for name, count in counts.items())
    cut = ", ".join(name for name in PASSAGES if name in counts)
    return f" All seeds are measured on the same documents ({each}): the intervals are over seeds, not over text." + (
        f" Those of {cut} are passages; other passages of the same texts are trained on." if cut else ""
    )


def unswitched(records: Sequence[Record]) -> str:
    """A sentence for pages about the switch, where there was none; empty where there was."""
    return "" if records[0]["switched"] else " Nothing was switched: all text is the standard library."
