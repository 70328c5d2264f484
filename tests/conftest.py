"""What all tests share: CPU, strict shapes, repeatable examples, what is compiled, a throw-away token store."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # one for all workers and for the processes that tests start
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="wsm-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import gzip
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# [n] + [m, n] is how a missing axis goes unnoticed: broadcasting must be written out.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time, no example database on disk, and no limit on one example: the first call compiles.
hypothesis.settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A temporary folder for token stores; while it lives, ``WSM_DATA`` names it, whatever the shell had set."""
    folder = tmp_path_factory.mktemp("wsm_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSM_DATA", str(folder))
        yield folder


@pytest.fixture(scope="session")
def library_text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with some modules of the standard library: real text, small enough to tokenize in a second."""
    folder = tmp_path_factory.mktemp("library")
    modules = sorted(path for path in pathlib.Path(os.__file__).parent.glob("*.py") if path.stat().st_size < 40_000)
    for path in modules[:60]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def short_demo(library_text: pathlib.Path) -> list[str]:
    """Overrides that make the demo's configuration take seconds; steps are 1/40 of the demo's."""
    return [
        "--config.duration=40steps",
        "--config.schedule.warmup=4steps",
        "--config.checkpoint.merge_interval=1steps",
        "--config.evaluation.tokens=2000",
        "--config.model.layers=1",
        "--config.model.d_model=32",
        "--config.model.context=32",
        f"--config.data.source=text:{library_text}",
        "--config.data.tokenizer=bpe:300",
        "--config.data.validation_fraction=0.1",
        "--config.data.test_fraction=0.1",
    ]


@pytest.fixture(scope="session")
def demo_run(store: pathlib.Path, short_demo: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The demo, made short: constant/, three decay-*/ and report/ as real processes left them."""
    folder = tmp_path_factory.mktemp("demo") / "demo-0"
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-m", "experiments.demo", f"--output={folder}", *short_demo]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def experiment_text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Parts of modules of the standard library in the place of every text, the beginning of each as a problem."""
    from experiments import corpus

    folder = tmp_path_factory.mktemp("data")
    modules = sorted(pathlib.Path(os.__file__).parent.glob("*.py"), key=lambda path: path.stat().st_size)[-104:]
    texts = [path.read_text(encoding="utf-8") for path in modules]
    problem = {"question", "answer", "problem", "solution", "code", "prompt", "canonical_solution"}
    place = 0
    for phase in corpus.PHASES.values():
        for files in phase.values():
            for file, _ in files:
                length = 12 if file.startswith("eval/") else 400  # questions with answers fit the smallest context
                records = [
                    {"text": part, "options": ["one", "two"], **dict.fromkeys(problem, part[:length])}
                    for text in texts[place : place + 8]
                    for lines in [text.splitlines(keepends=True)]
                    for part in ("".join(lines[start : start + 50]) for start in range(0, len(lines), 50))
                ]
                if file == "eval/mmlu_pro_test":
                    records = [record | {"answer": "B"} for record in records]
                place += 8
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                with gzip.open(folder / f"{file}.jsonl.gz", "wt", encoding="utf-8") as out:
                    out.writelines(json.dumps(record) + "\n" for record in records)
    (folder / "sft").mkdir()
    with gzip.open(folder / "sft" / "t0_12k.jsonl.gz", "wt", encoding="utf-8") as out:
        for line in "".join(texts).splitlines()[:4000]:
            if len(line) > 40:
                out.write(json.dumps({"prompt": line[:20], "completion": f"{line[20:40]}<|endoftext|>"}) + "\n")
    return folder
