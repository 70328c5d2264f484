"""Parity with transformers, live and both ways, for every public architecture: ``make test-interop``.

    python -m tests.interop.parity --peer=build/interop/bin/python --output=results/interop/parity.json

Models of transformers are imported and answer here; random parameters of ours are exported and answer there. Float32;
exit status 1 where logits differ by more than 1e-4.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wsm_jax import Run
from wsm_jax.checkpoints import integrity, orbax
from wsm_jax.errors import UsageWarning
from wsm_jax.evaluation import evaluate
from wsm_jax.interchange import incoming, outgoing
from wsm_jax.io import machine
from wsm_jax.io.files import write_json
from wsm_jax.models import model

PEER = Path(__file__).parent / "peer.py"
TOLERANCE = 1e-4


def ask(python: str, verb: str, folder: Path) -> dict[str, str]:
    """Runs the side of transformers; the versions it ran on."""
    done = subprocess.run([python, str(PEER), verb, str(folder)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def random_parameters(built: model.Model) -> Any:
    """As large as those of the models made there, norms and biases too."""
    params = built.init(jax.random.key(7))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(8), len(leaves))
    noise = (0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True))
    return jax.tree.unflatten(tree, [leaf + more for leaf, more in zip(leaves, noise, strict=True)])


def row(name: str, architecture: str, direction: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """One line of the table."""
    found = {"largest_logit": float(np.abs(theirs).max()), "difference": float(np.abs(ours - theirs).max())}
    return {"model": name, "architecture": architecture, "direction": direction, **found}


def measure(python: str, work: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All rows, and the versions of the other side."""
    rows, waiting = [], {}
    there, back = work / "there", work / "back"
    there.mkdir()
    back.mkdir()
    versions = ask(python, "make", there)
    for folder in sorted(there.iterdir()):
        imported = incoming.bring_in(str(folder), work / "runs" / folder.name)
        run, ids = Run(work / "runs" / folder.name), np.load(folder / "ids.npy").astype(np.int32)
        fields = evaluate.fields_of(run)
        built = model.build(fields)
        apply = jax.jit(built.apply)
        ours = apply(orbax.load_tree(run.merge_stream / "1"), ids)
        name = imported["architecture"]
        rows.append(row(folder.name, name, "transformers to ours", np.asarray(ours), np.load(folder / "logits.npy")))
        params = random_parameters(built)
        orbax.save_tree(run.merged("random"), params)
        integrity.seal(run.merged("random"), {orbax.PARAMS: []})
        outgoing.take_out(run, run.merged("random"), fields, back / folder.name)
        np.save(back / folder.name / "ids.npy", ids)
        waiting[folder.name] = name, np.asarray(apply(params, ids))
    ask(python, "answer", back)
    for name, (architecture, ours) in waiting.items():
        rows.append(row(name, architecture, "ours to transformers", ours, np.load(back / name / "logits.npy")))
    return rows, versions


def main() -> int:
    """Measures, writes the table, says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="a Python with torch and transformers")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UsageWarning)  # the models have no tokenizer
    with tempfile.TemporaryDirectory() as work:
        rows, versions = measure(options.peer, Path(work))
    about = {**machine.environment(), "command": "make test-interop", "peer": versions, "tolerance": TOLERANCE}
    write_json(options.output, {**about, "rows": rows})
    for one in rows:
        print(f"{one['direction']:22} {one['model']:18} {one['difference']:.2e} of {one['largest_logit']:.3g}")
    return int(any(not one["difference"] <= TOLERANCE for one in rows))


if __name__ == "__main__":
    sys.exit(main())
