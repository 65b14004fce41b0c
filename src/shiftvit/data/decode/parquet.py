"""Reads Parquet files of images, as the Hugging Face Hub stores them: the columns, the labels and the images' bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError, describe_error, suggest_install

# The usual names of the columns, for files without metadata. The first of them that a file has is used.
IMAGE_NAMES = ("image", "img", "images", "picture")
LABEL_NAMES = (
    *("label", "labels", "fine_label", "class", "category", "target", "label_name", "class_name", "category_name"),
    *("target_name", "class_label", "class_id", "label_id", "category_id"),
)
_BATCH = 2**23  # bytes of images that are read at a time
_MOST_ROWS = 1024  # rows that are read at a time


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are used.

    `names` are the classes of a `ClassLabel`; None: the labels are their own names. `remarks` are phrases about columns
    that could have been used instead.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None
    remarks: tuple[str, ...] = ()


def import_pyarrow(path: str) -> Any:
    """Imports pyarrow, with `pyarrow.parquet`, and returns it.

    Raises:
        ShiftViTError: it is not installed; the message names `path`, for which it is needed.
    """
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ShiftViTError(
            f"{path!r} is Parquet, and pyarrow is not installed; {suggest_install('pyarrow')}"
        ) from error
    return pa


@contextmanager
def open_parquet(path: str, open_file: Callable[[], Any] | None = None) -> Iterator[Any]:
    """Opens a Parquet file as a `pyarrow.parquet.ParquetFile`. Any exception while it is open becomes one line.

    Args:
        path: its path, or its name in messages.
        open_file: opens a file that is not on this machine and returns it as a file of pyarrow's; None: opens the path.

    Raises:
        ShiftViTError: pyarrow is not installed, or the file is damaged or is not Parquet.
    """
    pa = import_pyarrow(path)
    try:
        # One row group may be the whole file, so it is read in pieces of the size of a buffer.
        with (
            open_file() if open_file else pa.OSFile(path) as stream,
            pa.parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False) as file,
        ):
            yield file
    except (ShiftViTError, MemoryError):
        raise
    except Exception as error:  # damaged files raise exceptions of nearly any type
        raise ShiftViTError(
            f"{path!r} is not a readable Parquet file ({describe_error(error)}); get the file again"
        ) from error


def has_images(path: str) -> bool:
    """Returns whether a file is Parquet with a column of images; False if it cannot be read."""
    try:
        with open_parquet(path) as file:
            find_columns(path, file)
    except ShiftViTError:
        return False
    return True


def find_columns(path: str, file: Any) -> Columns:
    """Finds the columns of images and of labels in an open file.

    The metadata that the package `datasets` writes decide, or without them the names of the columns. A file need not
    have labels.

    Raises:
        ShiftViTError: there is no column of images, there are several, or two classes have the same name.
    """
    import pyarrow.types as is_type  # type: ignore[import-untyped]

    schema = file.schema_arrow
    features = _read_features(schema.metadata)
    kinds = {name: features.get(name, {}).get("_type") for name in schema.names}
    binary = [field.name for field in schema if _find_bytes(field) is not None]
    structs = [name for name in binary if is_type.is_struct(schema.field(name).type)]
    # By the metadata, else by a usual name, else as structs, else by the bytes alone.
    images = [name for name in binary if kinds[name] == "Image"]
    images = images or _find_names(binary, IMAGE_NAMES) or structs or binary
    if not images:
        raise ShiftViTError(
            f"{path!r} has no column with the bytes of images, only {describe_columns(file)}; store them in a column "
            "named image (shiftvit reads no paths, base64 or arrays: save files in class folders, or a .csv of paths)"
        )
    if not structs and len(images) > 1 and images[0].casefold() not in IMAGE_NAMES:
        raise ShiftViTError(
            f"{path!r} has bytes in the columns {', '.join(images)[:200]}; rename the one with images to 'image'"
        )
    plain = [field.name for field in schema if _is_label(field.type)]
    labels = [name for name in plain if kinds[name] == "ClassLabel"] or _find_names(plain, LABEL_NAMES)
    remarks = [
        f"columns of {what} that are not used, since {found[0]!r} is the first: {', '.join(found[1:])}"
        for what, found in (("images", images), ("labels", labels))
        if len(found) > 1
    ]
    names = features.get(labels[0], {}).get("names") if labels else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return Columns(images[0], labels[0] if labels else None, None, tuple(remarks))
    if len({*names}) < len(names):
        raise ShiftViTError(
            f"{path!r} has two classes with the same name in {labels[0]!r}; give each a name of its own"
        )
    return Columns(images[0], labels[0], tuple(names), tuple(remarks))


def describe_columns(file: Any) -> str:
    """Returns the columns of an open file with their types, for messages: `text (string), label (double)`."""
    return ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in file.schema_arrow)[:300]


def read_labels(path: str, file: Any, columns: Columns) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Reads the labels of an open file with N rows.

    Returns:
        int64 (N,), each an index into the names, which come second, or -1 for a row without a label. That is a null,
        a blank, or -1, with which the Hub marks images whose labels are secret.

    Raises:
        ShiftViTError: a label has no name.
    """
    import pyarrow as pa

    if columns.label is None:
        return np.full(file.metadata.num_rows, -1, np.int64), ()
    column = file.read(columns=[columns.label]).column(0)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):  # pandas stores whole numbers as floats if some are missing
        reals = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
        wrong = np.flatnonzero(~np.isnan(reals) & ~np.equal(np.mod(reals, 1), 0))
        if len(wrong):
            raise ShiftViTError(
                f"row {wrong[0]} of {path!r} has the label {reals[wrong[0]]}; labels are whole numbers or names"
            )
        column = pa.chunked_array([pa.array(np.where(np.isnan(reals), -1, reals).astype(np.int64))])
    if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        texts = [None if text is None else text.strip() for text in column.to_pylist()]
        known = tuple(sorted({text for text in texts if text}))
        index = {text: number for number, text in enumerate(known)}
        return np.array([index.get(text, -1) for text in texts], np.int64), known
    numbers = column.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
    if columns.names is None:
        values = np.unique(numbers[numbers != -1])
        return np.where(numbers == -1, -1, np.searchsorted(values, numbers)), tuple(map(str, values.tolist()))
    wrong = np.flatnonzero((numbers < -1) | (numbers >= len(columns.names)))
    if len(wrong):
        raise ShiftViTError(
            f"row {wrong[0]} of {path!r} has the label {numbers[wrong[0]]}, out of range for {len(columns.names)} "
            "classes; correct the labels, or the names of the classes"
        )
    return numbers, columns.names


def count_bytes(file: Any) -> int:
    """Returns how many bytes all columns of an open file have without compression. The images have at most as many."""
    # Not from the sizes of single columns: asked for these, pyarrow ends the process if the file is damaged.
    groups = range(file.metadata.num_row_groups)
    return sum(max(0, file.metadata.row_group(number).total_byte_size) for number in groups)


def read_images(path: str, columns: Columns) -> Iterator[Any]:
    """Yields the images of a file, some rows at a time; see `read_groups`.

    Raises:
        ShiftViTError: the file is damaged.
    """
    with open_parquet(path) as file:
        yield from read_groups(file, columns)


def read_groups(file: Any, columns: Columns, groups: Sequence[int] | None = None) -> Iterator[Any]:
    """Yields the images of an open file, some rows at a time, as arrays of large_binary; one without an image is null.

    Memory does not grow with the file or its row groups. It is a few times the largest page, and a page that pyarrow
    wrote has no more than 1,024 images.

    Args:
        file, columns: what `open_parquet` and `find_columns` returned.
        groups: the row groups; None: all.
    """
    import pyarrow as pa

    leaf = f"{columns.image}{_find_bytes(file.schema_arrow.field(columns.image))}"
    at_a_time = _BATCH * file.metadata.num_rows // max(1, count_bytes(file))
    for batch in file.iter_batches(
        max(1, min(_MOST_ROWS, at_a_time)), row_groups=groups, columns=[leaf], use_threads=False
    ):
        column = batch.column(0)
        images = column.flatten()[0] if pa.types.is_struct(column.type) else column
        yield images.cast(pa.large_binary())
        pa.default_memory_pool().release_unused()


def _find_bytes(field: Any) -> str | None:
    """Returns where a column has bytes: "" for itself, ".bytes" for a field of its struct; None: nowhere."""
    import pyarrow.types as is_type

    inner, where = field.type, ""
    if is_type.is_struct(inner):
        at = inner.get_field_index("bytes")
        inner, where = inner if at < 0 else inner.field(at).type, ".bytes"
    return where if is_type.is_binary(inner) or is_type.is_large_binary(inner) else None


def _is_label(kind: Any) -> bool:
    import pyarrow.types as is_type

    if is_type.is_dictionary(kind):
        kind = kind.value_type
    checks = (is_type.is_integer, is_type.is_floating, is_type.is_boolean, is_type.is_string, is_type.is_large_string)
    return any(check(kind) for check in checks)


def _find_names(columns: list[str], names: tuple[str, ...]) -> list[str]:
    """Returns the columns that have one of the names, in the order of the names."""
    return [column for name in names for column in columns if column.casefold() == name]


def _read_features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """Returns what `datasets` wrote about the columns, name -> feature; {} if that is missing or malformed."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
