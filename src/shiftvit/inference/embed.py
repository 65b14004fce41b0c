"""`Embedder`: from images to features, for search, clustering and duplicates."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.metadata import Metadata, make_metadata
from shiftvit.data.decode.images import MAX_PIXELS
from shiftvit.data.decode.parquet import import_pyarrow
from shiftvit.environment import count_cores
from shiftvit.errors import ShiftViTError, check_at_least, suggest
from shiftvit.evaluation.features import Extract, load_graph_features, load_keras_features
from shiftvit.inference.batches import BATCH_SIZE, run_batches, stream_pixels
from shiftvit.inference.runtimes import identify, name_model, read_onnx
from shiftvit.inference.sources import Failure, Source
from shiftvit.threads import take_turns

# Rows in a group of a Parquet file.
_ROWS = 4096


@dataclass(frozen=True)
class Embedding:
    """The features of one image.

    Attributes:
        path: the file, or "image N" (counted from 1) if the image did not come from a file.
        features: float32 (D,).
    """

    path: str
    features: NDArray[np.float32] = field(repr=False, compare=False)


class Embedder:
    """Computes the features of images: the pooled output of a trained model's last stage, the input of its head.

        embedder = Embedder.from_pretrained("cifar10")
        features = embedder(["cat.jpg", "dog.png"])  # float32 (2, 256)

    Decoding and preprocessing are those of `Predictor`. Divide the features by their norm for cosine similarity.
    Like a predictor, it can be shared by threads and pickled.

    Attributes:
        metadata: the model's preprocessing and input size.
        runtime: "onnxruntime" or "keras".
    """

    def __init__(self, metadata: Metadata, extract: Extract, runtime: str, model: str, threads: int | None) -> None:
        self.metadata, self.runtime = metadata, runtime
        self._run, self._model, self._threads = extract, model, threads

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self).from_pretrained, self._model, runtime=self.runtime, threads=self._threads), ()

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "cifar10", *, runtime: str = "auto", threads: int | None = None
    ) -> Self:
        """Loads a model.

        Args:
            model: the name of a model, a run folder, a bundle, or an ONNX export.
            runtime: "onnxruntime", which needs the model's graph and no framework, or "keras", which needs its
                weights; "auto": the graph if there is one.
            threads: CPU threads; None: one per core.

        Raises:
            ShiftViTError: the model or runtime does not exist, or the model cannot compute features.
        """
        check_at_least("threads", threads, 1)
        kind, source = identify(model)
        able = {"bundle with a graph": ["onnxruntime", "keras"], "bundle without a graph": ["keras"]}
        runtimes = able.get(kind, ["onnxruntime"] if kind == "ONNX" else [])
        if not runtimes:
            raise ShiftViTError(
                f"{str(model)!r} ({kind}) cannot compute features; name the run or bundle that it came from, or ONNX"
            )
        if runtime == "auto":
            runtime = runtimes[0]
        if runtime not in runtimes:
            raise ShiftViTError(
                f"{str(model)!r} ({kind}) cannot compute features in {runtime!r}; {suggest(runtime, runtimes)}"
            )
        place = source if isinstance(source, Path) else source.where
        if runtime == "onnxruntime":
            content, origin = read_onnx(source)
            metadata, extract = load_graph_features(content, threads or count_cores(), origin)
        else:
            from shiftvit.backend import limit_threads

            limit_threads(threads or count_cores())
            bundle = Bundle.load(place)
            metadata = make_metadata(bundle)
            extract = take_turns(load_keras_features(bundle.build("float32"), metadata.preprocess))
        return cls(metadata, extract, runtime, name_model(model, place), threads)

    def __call__(self, images: Source | Iterable[Source], *, batch_size: int = BATCH_SIZE) -> NDArray[np.float32]:
        """Returns the features of images, float32 (N, D).

        Args:
            images: as for `Predictor`.
            batch_size: images per batch.

        Raises:
            ShiftViTError: an image cannot be read. `stream` continues with the next one instead.
        """
        rows = []
        for result in self.stream(images, batch_size=batch_size):
            if isinstance(result, Failure):
                raise ShiftViTError(result.error)
            rows.append(result.features)
        return np.stack(rows) if rows else np.empty((0, self.size), np.float32)

    @property
    def size(self) -> int:
        """The number of features, D."""
        return int(self._run(np.zeros((1, *self.metadata.example_shape), np.uint8)).shape[1])

    def stream(
        self,
        sources: Source | Iterable[Source],
        *,
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
        ahead: int | None = None,
    ) -> Iterator[Embedding | Failure]:
        """Yields a result for each image, in order, in bounded memory; arguments and errors as `Predictor.stream`."""
        batches = stream_pixels(sources, self.metadata, batch_size, threads, max_pixels, ahead)
        answers = run_batches(batches, self._run, self._model)
        return (answer if isinstance(answer, Failure) else Embedding(*answer) for answer in answers)


def check_table(path: Path, inputs: Iterable[str] = ()) -> None:
    """Raises ShiftViTError unless `write_table` can write to `path`: the suffix, the folder and the needed packages.

    Nor may it overwrite one of `inputs`, the files that are read.
    """
    files.check_file(path, tuple(_WRITERS), inputs)
    if path.suffix.lower() == ".parquet":
        import_pyarrow(str(path))


def write_table(path: Path, rows: Iterator[Embedding], size: int) -> None:
    """Writes paths and features to an .npz (`paths` and `features`) or a Parquet file (`path` and `features`).

    The file is written atomically, in bounded memory except for the paths.

    Raises:
        ShiftViTError: the disk is full or the folder is not writable.
    """
    files.write_file(path, lambda temporary: _WRITERS[path.suffix.lower()](temporary, rows, size))


def _write_npz(path: Path, rows: Iterator[Embedding], size: int) -> None:
    paths = []
    # Rows go to a temporary file first, because an array file begins with its length.
    with tempfile.TemporaryFile(dir=path.parent) as rows_file:
        for row in rows:
            paths.append(row.path)
            rows_file.write(row.features.astype("<f4").tobytes())
        rows_file.seek(0)
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), size)}
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(rows_file, member, 2**20)
            with archive.open("paths.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(paths, np.str_), allow_pickle=False)


def _write_parquet(path: Path, rows: Iterator[Embedding], size: int) -> None:
    pyarrow = import_pyarrow(str(path))
    schema = pyarrow.schema([("path", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32(), size))])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while some := list(itertools.islice(rows, _ROWS)):
            flat = pyarrow.array(np.concatenate([row.features for row in some]))
            features = pyarrow.FixedSizeListArray.from_arrays(flat, size)
            writer.write_table(pyarrow.table([make_texts(row.path for row in some), features], schema=schema))


def make_texts(texts: Iterable[str | None]) -> Any:
    """Returns an Arrow array of texts. It escapes file names that are not valid UTF-8."""
    import pyarrow as pa  # type: ignore[import-untyped]

    coded = [None if text is None else text.encode("utf-8", "backslashreplace").decode() for text in texts]
    return pa.array(coded, pa.string())


_WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}
