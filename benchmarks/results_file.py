"""What the benchmarks share: where figures come from, and the file that they are written to."""

import datetime
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def provenance() -> dict[str, str]:
    """The command and the time, for every record."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"benchmark": shlex.join(sys.argv), "date": now}


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A JSON line a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"written: {path}")
