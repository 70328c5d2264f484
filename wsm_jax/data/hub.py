"""Documents from catalogues: prepared TFDS data sets and the Hugging Face hub."""

import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from wsm_jax.data.files import stat_signature
from wsm_jax.errors import UsageError

Reader = Callable[[], Iterator[tuple[str, str]]]


def open_tfds(name: str) -> tuple[Reader, str]:
    """A TFDS data set that needs no TensorFlow.

    The split ``train`` is read, or all splits where there is none by that name. Text is the feature ``text``, or the
    only string feature; the id is the feature ``id`` where that is another string, else split and number.

    Args:
      name: ``NAME[/config][:version][@DATA_DIR]``, or the folder of one prepared version.

    Returns:
      a function that yields (id, text), and a signature of the prepared files.

    Raises:
      UsageError: unknown, not prepared and not preparable here, needs TensorFlow, or no clear text feature.
    """
    import tensorflow_datasets as tfds

    from wsm_jax.data.tfds_builder import quiet, records

    spec = f"tfds:{name}"
    with quiet():
        builder = _tfds_builder(tfds, name, spec)
        if not builder.is_prepared():
            _prepare_tfds(builder, spec)
        splits = ["train"] if "train" in builder.info.splits else sorted(builder.info.splits)
        field, identity = _text_field(tfds, builder.info.features, spec)
        try:
            sources = {split: builder.as_data_source(split) for split in splits}
        except (NotImplementedError, ImportError) as error:
            raise UsageError(
                f"{spec} is prepared in a format that cannot be read without TensorFlow; where that is installed, "
                f"convert it: tfds convert_format --dataset_dir={builder.data_dir} --out_file_format=array_record"
            ) from error

    def read() -> Iterator[tuple[str, str]]:
        for split, source in sources.items():
            for number, record in enumerate(records(source)):
                text = _decoded(record[field], spec, split, number)
                if text:
                    known = _decoded(record[identity], spec, split, number) if identity else ""
                    yield known or f"{split}:{number}", text

    folder = pathlib.Path(builder.data_dir)
    return read, stat_signature(sorted((p.name, p) for p in folder.iterdir() if p.is_file()))


def _tfds_builder(tfds: Any, name: str, spec: str) -> Any:
    if os.path.isfile(os.path.join(os.path.expanduser(name), "dataset_info.json")):
        return tfds.builder_from_directory(os.path.expanduser(name))
    plain, _, data_dir = name.partition("@")
    try:
        return tfds.builder(plain, data_dir=os.path.expanduser(data_dir) or None)
    except tfds.core.registered.DatasetNotFoundError as error:
        place = data_dir or "~/tensorflow_datasets"
        raise UsageError(f"{spec}: there is no `{plain}`, neither in TFDS's catalogue nor in {place}") from error
    except ImportError as error:
        raise UsageError(f"{spec} needs {error.name or 'a package'}, which is not installed; {_ELSEWHERE}") from error
    except Exception as error:
        raise UsageError(f"{spec} cannot be opened: {_first_line(error)}") from error


_ELSEWHERE = (
    "prepare it where that is, with tfds build --file_format=array_record, and name its folder: tfds:NAME@DATA_DIR"
)


def _prepare_tfds(builder: Any, spec: str) -> None:
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        missing = _missing_module(error)
        if missing == "tensorflow":
            raise UsageError(f"{spec} is not prepared and needs TensorFlow to be; {_ELSEWHERE}") from error
        why = f"no module {missing}" if missing else _first_line(error)
        raise UsageError(f"{spec} is not prepared and cannot be prepared here ({why}); {_ELSEWHERE}") from error


def _text_field(tfds: Any, features: Any, spec: str) -> tuple[str, str | None]:
    strings = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
    field = "text" if "text" in strings else strings[0] if len(strings) == 1 else None
    if field is None:
        raise UsageError(f"{spec} has no string feature `text`, nor exactly one; its features: {', '.join(features)}")
    return field, "id" if "id" in strings and field != "id" else None


def _decoded(value: Any, spec: str, split: str, number: int) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise UsageError(f"{spec}: record {number} of {split} is not UTF-8 text") from error


def open_hf(name: str) -> tuple[Reader, str]:
    """A data set of the Hugging Face hub, by ``datasets.load_dataset``.

    Args:
      name: ``[OWNER/]NAME[/config][:split][#field]`` or a local folder; the split defaults to ``train``, the field to
        ``text`` (or the only string column). Two parts are owner and name.

    Returns:
      a function that yields (id, text), and a signature: of the files where the folder is local, else always the same,
      so that what was prepared once stays as it is even when the hub changes.

    Raises:
      UsageError: `datasets` is not installed, the data set cannot be loaded, or it has no such field.
    """
    spec = f"hf:{name}"
    path, config, split, field = parse_hf(name)

    def read() -> Iterator[tuple[str, str]]:
        # Loaded only when read: a prepared store needs neither the network nor the package.
        try:
            import datasets
        except ImportError as error:
            raise UsageError(f'{spec} needs the extra `hf`: pip install "wsm-jax[hf]"') from error
        try:
            table: Any = datasets.load_dataset(path, config, split=split)
        except Exception as error:
            raise UsageError(f"{spec} cannot be loaded: {_first_line(error)}") from error
        columns = table.column_names
        strings = [c for c in columns if getattr(table.features[c], "dtype", "") in ("string", "large_string")]
        chosen = field or ("text" if "text" in strings else strings[0] if len(strings) == 1 else "text")
        if chosen not in strings:
            raise UsageError(f"{spec} has no string column `{chosen}`; name one of {', '.join(columns)} after #")
        identity = "id" if "id" in columns and chosen != "id" else None
        table = table.select_columns([chosen] + ([identity] if identity else []))
        for number, record in enumerate(table):
            if record[chosen]:
                known = record[identity] if identity else None
                yield f"{split}:{number}" if known is None else str(known), record[chosen]

    if os.path.isdir(path):
        return read, stat_signature(sorted((str(p), p) for p in pathlib.Path(path).rglob("*") if p.is_file()))
    return read, "as first prepared"


def parse_hf(name: str) -> tuple[str, str | None, str, str | None]:
    """(path, config, split, field) of ``[OWNER/]NAME[/config][:split][#field]``.

    Raises:
      UsageError: another form.
    """
    match = re.fullmatch(r"(?P<path>[^:#]+)(:(?P<split>[^#]+))?(#(?P<field>.+))?", name)
    if match is None:
        raise UsageError(f"hf:{name} is not of the form hf:OWNER/NAME[/config][:split][#field]")
    path, config = os.path.expanduser(match["path"]), None
    if not os.path.isdir(path):
        parts = path.split("/")
        if len(parts) > 3 or not all(parts):
            raise UsageError(f"hf:{name} is not of the form hf:OWNER/NAME[/config][:split][#field]")
        path, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    return path, config, match["split"] or "train", match["field"]


def _missing_module(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ImportError) and error.name:
            return error.name.split(".")[0]
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
