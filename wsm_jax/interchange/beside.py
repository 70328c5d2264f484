"""What lies beside the weights of a public model and goes with it: its configuration, its tokenizer, its licence."""

import fnmatch
import shutil
from pathlib import Path

from wsm_jax.checkpoints.run import Run
from wsm_jax.data import chat
from wsm_jax.data.tokenizer import Tokenizer, load_tokenizer
from wsm_jax.errors import UsageError, warn
from wsm_jax.interchange.architecture import Layout
from wsm_jax.models.public import CONFIG

GENERATION = chat.GENERATION
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
             "merges.txt", "encoder.json", "vocab.bpe", "tokenizer.model", "chat_template.*")  # fmt: skip
KEPT = (CONFIG, GENERATION, *TOKENIZER, "LICENSE*", "NOTICE*", "USE_POLICY*")
UNUSED, PADDING = 0.1, 128  # share of the embedding's rows, and rows, without a token that need no mention


def files(folder: Path, patterns: tuple[str, ...] = KEPT) -> list[Path]:
    """The files of a folder that go with the model, sorted; of a model that is one file, none."""
    found = (file for file in (sorted(folder.iterdir()) if folder.is_dir() else ()) if file.is_file())
    return [file for file in found if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]


def copy(folder: Path, out: Path, patterns: tuple[str, ...] = KEPT) -> None:
    """Copies those files into ``out``, made if missing."""
    out.mkdir(parents=True, exist_ok=True)
    for file in files(folder, patterns):
        shutil.copyfile(file, out / file.name)


def tokenizer_in(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder; None where it has none."""
    names = {file.name for file in files(folder, TOKENIZER)}
    if not names & {"tokenizer.json", "encoder.json", "vocab.json"}:
        return None
    return load_tokenizer(folder)


def tokenizer_place(run: Run) -> Path:
    """The folder with the tokenizer of a run, one with its chat template where there is one.

    Raises:
      UsageError: an imported run that has none.
    """
    if run.tokenizer is None:
        raise UsageError(f"{run.path} has no tokenizer; import it again with --tokenizer=PATH")
    wanted, (own, *others) = run.facts["data"]["tokenizer_hash"], run.tokenizer_folders
    if not chat.has_template(own):
        for folder in others:
            if chat.has_template(folder) and load_tokenizer(folder).hash == wanted:
                return folder
    return own


def check_tokenizer(tokenizer: Tokenizer, layout: Layout, place: Path) -> None:
    """Raises UsageError for a tokenizer with tokens that the model has no row for; warns of many rows without one."""
    tokens, rows = tokenizer.vocab_size, layout.fields.vocab_size
    if tokens > rows:
        raise UsageError(f"{place}: the tokenizer has {tokens} tokens, the model {rows}; they do not belong together")
    if rows - tokens >= max(UNUSED * rows, PADDING):
        warn(f"{place}: the tokenizer has {tokens} tokens, the model {rows}; do they belong together?")
