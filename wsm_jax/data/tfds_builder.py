"""TFDS over local text, without TensorFlow: ArrayRecord files written once and read at random."""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from wsm_jax.data import files
from wsm_jax.errors import UsageError
from wsm_jax.io.publish import published

# Records fetched at once: enough to hide the cost of a call, little enough to hold in memory.
_READ = 64


class LocalText(tfds.core.GeneratorBasedBuilder):
    """One split `train` of {"id", "text"} from local files, in their order.

    Args:
      sources: the files, as ``wsm_jax.data.files.select`` gives them.
      **kwargs: those of every TFDS builder (``data_dir``, ``file_format``).
    """

    VERSION = tfds.core.Version("1.0.0")
    # There are no checksums beside this file; looking for them needs importlib_resources, which TFDS does not require.
    code_path = None

    def __init__(self, *, sources: Sequence[files.NamedFile] = (), **kwargs: Any):
        self._sources = sources
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Documents from local text files.",
            features=tfds.features.FeaturesDict({"id": text, "text": text}),
            disable_shuffling=True,  # The order of the documents is part of the contract.
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        for number, (identity, text) in enumerate(files.read(self._sources)):
            yield number, {"id": identity, "text": text}


def build(sources: Sequence[files.NamedFile], folder: pathlib.Path) -> pathlib.Path:
    """Write the documents of ``sources`` as a TFDS data set, unless ``folder`` holds it already.

    Args:
      sources: files by name.
      folder: where the data set goes; it appears whole or not at all.

    Returns:
      ``folder``.

    Raises:
      UsageError: a file that cannot be read, or no document with any text.
    """
    if folder.is_dir():
        return folder
    # TFDS wraps whatever its generator raises, so the first document is read, and errors are unwrapped, here.
    if next(files.read(sources), None) is None:
        raise UsageError(f"{sources[0][1]}{' and the others' if len(sources) > 1 else ''}: no document with any text")
    with published(folder) as temporary:
        builder = LocalText(sources=sources, data_dir=temporary / "build", file_format="array_record")
        try:
            with quiet():
                builder.download_and_prepare()
        except Exception as error:
            raise _usage_error(error) or error from error
        pathlib.Path(builder.data_dir).rename(temporary / "data")
        with contextlib.suppress(OSError):
            for left in sorted((temporary / "build").rglob("*"), reverse=True):
                left.rmdir()
            (temporary / "build").rmdir()
    return folder


def read(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(id, text) of every document of a data set that :func:`build` wrote, in order."""
    with quiet():
        source = tfds.builder_from_directory(folder / "data").as_data_source("train")  # pyrefly: ignore
    for record in records(source):
        yield record["id"].decode(), record["text"].decode()


def records(source: Any) -> Iterator[dict[str, Any]]:
    """Every record of a TFDS data source, in order."""
    for start in range(0, len(source), _READ):
        yield from source.__getitems__(range(start, min(start + _READ, len(source))))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep TFDS from printing to standard output, from warning and from drawing its progress bars."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def _usage_error(error: BaseException | None) -> UsageError | None:
    while error is not None and not isinstance(error, UsageError):
        error = error.__cause__ or error.__context__
    return error
