"""Computes the features of a data set in a stream, and caches them by the content of each picture."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.console import Bar
from shiftvit.data.batches.pictures import Pictures, read_picture
from shiftvit.data.decode.images import read_bytes
from shiftvit.data.decode.rows import unpack
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import ShiftViTError, notice, pluralize, report_skipped
from shiftvit.evaluation.features import Extract
from shiftvit.evaluation.logits import choose_batch_size
from shiftvit.preprocess import Preprocess
from shiftvit.threads import map_in_threads

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

# The store writes a file after so many pictures, or so many seconds.
_PART, _SECONDS = 4096, 20.0
_FORMAT = "1"  # of the store; to be changed when features are computed differently


class Store:
    """A cache of features on disk, by the SHA-256 of their pictures. Several processes may add to it at once.

    Args:
        key: identifies everything else that features depend on: the model, its preprocessing, the decoding.
    """

    def __init__(self, key: str) -> None:
        self.folder = files.find_cache_folder("features") / hashlib.sha256(f"{_FORMAT} {key}".encode()).hexdigest()[:32]
        self._rows: dict[bytes, Floats] = {}
        self._new: dict[bytes, Floats] = {}
        self._saved_at = time.monotonic()
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            self._rows |= _read_part(path)

    def get(self, digest: bytes) -> Floats | None:
        """Returns the features (D,) of a picture with this digest, or None."""
        return self._rows.get(digest)

    def add(self, digests: list[bytes], rows: Floats) -> None:
        """Adds features (N, D), and writes them from time to time."""
        self._new |= dict(zip(digests, rows, strict=True))
        self._rows |= dict(zip(digests, rows, strict=True))
        if len(self._new) >= _PART or time.monotonic() - self._saved_at > _SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the new features to one file, atomically. If that fails, it prints a notice and they are lost."""
        self._saved_at = time.monotonic()
        if not self._new:
            return
        from safetensors.numpy import save

        digests = np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, 32)
        content = save({"digests": digests, "features": np.stack(list(self._new.values()))})
        name = hashlib.sha256(content).hexdigest()[:32]
        self._new = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_file(self.folder / f"{name}.safetensors", lambda path: path.write_bytes(content))
        except (OSError, ShiftViTError) as error:
            notice(f"the features could not be cached: {error}")


def _read_part(path: Path) -> dict[bytes, Floats]:
    """Returns the features in a file of the store, or none if it is damaged; then it is deleted if possible."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        tensors = load(content)
        digests, rows = tensors["digests"], tensors["features"]
        whole = hashlib.sha256(content).hexdigest()[:32] == path.stem and digests.shape == (len(rows), 32)
    except OSError:
        return {}
    except (SafetensorError, KeyError, ValueError):
        whole = False
    if not whole:
        with contextlib.suppress(OSError):  # the store may be shared, and read-only
            path.unlink()
        return {}
    return {digest.tobytes(): row for digest, row in zip(digests, rows, strict=True)}


class FeatureReader:
    """Reads a data set as `read_dataset` does, and computes the features of each picture on the way.

    Args:
        open_model: called once with the (height, width) of the pictures. Returns the model's key for the store, and a
            function that loads the model, which the reader calls only if it must compute something.

    Attributes:
        features: for each split, float32 (N, D), in the order of its pictures.
        count: the number of pictures that were read, counted again if all are read again.
        computed: how many of them were not in the store.
        seconds: the total time of reading.
    """

    def __init__(self, open_model: Callable[[tuple[int, int]], tuple[str, Callable[[], Extract]]]) -> None:
        self._open_model = open_model
        self._store: Store | None = None
        self._load: Callable[[], Extract] | None = None
        self._extract: Extract | None = None
        self.features: dict[str, Floats] = {}
        self.count, self.computed, self.seconds = 0, 0, 0.0

    def __call__(self, data: Dataset, rule: Preprocess) -> Dataset:
        """Returns the same splits with `images`, as `read_dataset` does, without pictures that cannot be decoded."""
        began, total = time.perf_counter(), sum(map(len, data.splits.values()))
        before = self.computed
        unpack(data.list_paths())
        arrays = {name: split.images.shape[1:3] for name, split in data.splits.items() if split.images is not None}
        if arrays:  # files all have one size after preprocessing
            data.check_sizes({name: rule.output_shape(*shape) for name, shape in arrays.items()})
        splits: dict[str, Split] = {}
        faults: list[str] = []
        with Bar("features", total) as bar:
            try:
                for name, split in data.splits.items():
                    splits[name], self.features[name], broken = self._read(split, rule, bar, began)
                    if not len(splits[name]):
                        raise ShiftViTError(f"none of the {len(split):,} {name} images can be decoded; {broken[0]}")
                    faults += broken
            except KeyboardInterrupt:
                count = pluralize(self.computed, "image")
                notice(f"the features of {count} are cached; run the same command again to continue")
                raise
            finally:
                if self._store is not None:
                    self._store.save()
        report_skipped(faults, "; `shiftvit data check --json` lists them all")
        seconds, new, read = time.perf_counter() - began, self.computed - before, total - len(faults)
        self.seconds += seconds
        self.count += read
        cached = f" ({read - new:,} from the cache)" if new < read else ""
        rate = f"{total / seconds:,.0f} images/s"
        notice(f"features of {pluralize(read, 'image')}{cached}: {seconds:.1f} s, {rate}")
        return replace(data, splits=splits)

    def _read(self, split: Split, rule: Preprocess, bar: Bar, began: float) -> tuple[Split, Floats, list[str]]:
        paths = split.paths or []
        if split.images is None:
            images = Pictures(paths, rule)
            size = images.shape[1], images.shape[2]
        else:
            size = rule.output_shape(*split.images.shape[1:3])
        if self._store is None:
            key, self._load = self._open_model(size)
            self._store = Store(f"{key} {size} {rule.model_dump_json()} {split.images is None}")
        rows: list[Floats | None] = [None] * len(split)
        faults: list[str] = []
        waiting: list[tuple[int, bytes, Pixels]] = []
        prepare = partial(_prepare, split, rule, self._store)
        for number, (digest, found) in enumerate(map_in_threads(prepare, range(len(split)))):
            if isinstance(found, str):
                faults.append(found)
            elif found is None:
                rows[number] = self._store.get(digest)
            else:
                waiting.append((number, digest, found))
                if len(waiting) == choose_batch_size(*size):
                    self._compute(waiting, rows)
            bar.update(bar.done + 1, f"{(bar.done + 1) / (time.perf_counter() - began):,.0f} images/s")
        self._compute(waiting, rows)
        usable = [number for number, row in enumerate(rows) if row is not None]
        features = np.stack([row for row in rows if row is not None]) if usable else np.empty((0, 0), np.float32)
        if split.images is not None:
            return replace(split.take(usable), preprocess=rule), features, faults
        kept = [paths[number] for number in usable]
        return Split(split.labels[usable], kept, Pictures(kept, rule), rule.rest), features, faults

    def _compute(self, waiting: list[tuple[int, bytes, Pixels]], rows: list[Floats | None]) -> None:
        """Computes the features of the waiting images, and empties the list."""
        if not waiting:
            return
        if self._extract is None:
            assert self._load is not None
            self._extract = self._load()
        found = self._extract(np.stack([pixels for _, _, pixels in waiting]))
        if not np.isfinite(found).all():
            raise ShiftViTError("the model's features are not finite; restore the model, or start from another one")
        assert self._store is not None
        self._store.add([digest for _, digest, _ in waiting], found)
        for (number, _, _), row in zip(waiting, found, strict=True):
            rows[number] = row
        self.computed += len(waiting)
        waiting.clear()


def _prepare(split: Split, rule: Preprocess, store: Store, number: int) -> tuple[bytes, Pixels | str | None]:
    """Returns an image's digest, and its pixels, its fault or None if its features are cached."""
    if split.images is not None:
        image = np.ascontiguousarray(split.images[number])
        digest = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
        return digest, rule.pixels(image[None])[0] if store.get(digest) is None else None
    path = os.fspath((split.paths or [])[number])
    try:
        content = read_bytes(path)
        digest = hashlib.sha256(content).digest()
        if store.get(digest) is not None:
            return digest, None
        return digest, read_picture(content, rule, name=path)
    except ShiftViTError as error:
        return b"", str(error)
