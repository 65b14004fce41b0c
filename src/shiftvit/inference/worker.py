"""The actor of the bulk engine. It loads the model once, and turns blocks of images into files of rows."""

from __future__ import annotations

import hashlib
import json
import platform
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from shiftvit import __version__, files
from shiftvit.bundle.stored import manifest as stored
from shiftvit.data.decode.images import MAX_PIXELS
from shiftvit.errors import ShiftViTError
from shiftvit.inference.batches import BATCH_SIZE
from shiftvit.inference.blocks import TRIES, read_entries
from shiftvit.inference.embed import Embedder, make_texts
from shiftvit.inference.folder import BEGUN, OutputFolder
from shiftvit.inference.predict import Failure, Predictor, to_row
from shiftvit.inference.runtimes import find_weights, identify
from shiftvit.inference.storage import Storage

# The file in a run's folder that describes the run.
RUN_FILE = "run.json"
# The formats of each command's rows, the default first.
FORMATS = {"predict": ("jsonl", "parquet"), "embed": ("parquet",)}
_LOADERS: dict[str, type[Predictor] | type[Embedder]] = {"predict": Predictor, "embed": Embedder}
# An actor reserves so much less than its threads, because with one on each core the tasks that feed them need some too.
SPARE_CORES = 0.1
_MOST_DEATHS = 4  # actors that may die in one block, as when a node is taken away
_PAUSE = 2.0  # seconds between two attempts to read a block


@dataclass(frozen=True)
class Task:
    """What all actors of a run do.

    Attributes:
        command: "predict" or "embed".
        out: the folder of the results, by path or URI.
        model, runtime: as for `Predictor` or `Embedder`.
        kind: one of the command's `FORMATS`; None: the first.
        top_k: number of classes in a row.
        threads: CPU threads of an actor.
        digits: number of digits in the name of a block's file.
        batch_size, max_pixels: as for `Predictor.stream`.
        features: number of features of an image, for `embed`.
        storages: where the images are.
        roots: the folders on this machine that contain them.
        run: the `digest_run` of the manifest; "": it is not checked.
        version: the version of shiftvit.
    """

    command: str
    out: str
    model: str = "cifar10"
    runtime: str = "auto"
    kind: str | None = None
    top_k: int = 5
    threads: int = 1
    digits: int = 6
    batch_size: int = BATCH_SIZE
    max_pixels: int = MAX_PIXELS
    features: int | None = None
    storages: tuple[Storage, ...] = ()
    roots: tuple[str, ...] = ()
    run: str = ""
    version: str = __version__


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, to be sent to the nodes.

    Attributes:
        files: relative path -> content. All paths begin with the name of the model's file or folder.
        runtime: the runtime that runs it.
        features: number of features of an image, for `embed`.
    """

    files: dict[str, bytes] = field(repr=False)
    runtime: str
    features: int | None

    def digest(self) -> str:
        """Returns a SHA-256 of the files, in hexadecimal."""
        found = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            found.update(json.dumps([name, len(content)]).encode() + content)
        return found.hexdigest()


def read_model(command: str, model: str, runtime: str) -> ModelFiles:
    """Reads a model's files, and checks that the model can be loaded.

    Raises:
        ShiftViTError: the model does not exist or is damaged, or the runtime cannot run it.
    """
    loaded = _LOADERS[command].from_pretrained(model, runtime=runtime, threads=1)
    features = loaded.size if isinstance(loaded, Embedder) else None
    _, source = identify(model)
    if not isinstance(source, Path):
        manifest = stored.read_manifest(source)
        content = {stored.MANIFEST: source.read(stored.MANIFEST)}
        needed = manifest.files if loaded.runtime == "keras" else [stored.GRAPH]
        content |= {name: stored.read_checked(source, manifest, name) for name in needed}
        return ModelFiles({f"model/{name}": content[name] for name in content}, loaded.runtime, features)
    places = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    if source.suffix.lower() == ".xml":
        places.append(find_weights(source))
    found = {path.relative_to(source.parent).as_posix(): path.read_bytes() for path in places}
    return ModelFiles(found, loaded.runtime, features)


class Worker:
    """An actor, for `ray.data.Dataset.map_batches`.

    Args:
        task: the task.
        model: a reference to the model's files in the object store.
    """

    def __init__(self, task: Task, model: Any) -> None:
        self._task, self._reference = task, model
        self._model: Predictor | Embedder | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Processes the block of a batch, which has one. A fault that ends the run is returned in one line."""
        (number,), (entries,) = batch["block"], batch["entries"]
        failures, fault = 0, ""
        try:
            failures = self._process(int(number), entries)
        except (ShiftViTError, OSError, ImportError, MemoryError) as error:
            fault = " ".join(str(error).split()) or type(error).__name__
        return {"block": [int(number)], "failures": [failures], "fault": [fault]}

    def _process(self, number: int, entries: bytes) -> int:
        """Writes the rows of a block, and returns how many of its images failed."""
        task, out = self._task, OutputFolder(self._task.out)
        self._check(out)
        if task.run and digest_run(json.loads(out.read(RUN_FILE))) != task.run:
            raise ShiftViTError(f"{str(out)!r} was taken by another run, which started at the same time")
        name = name_part(number, task.kind, task.digits)
        begun = f".{name}{BEGUN}"
        if out.has(name):  # an actor wrote it, but died before it could report it
            return count_errors(out.read(name), task.kind)
        # Ray gives the block of an actor that died to another one, without an end.
        deaths = len(out.read(begun)) if out.has(begun) else 0
        if deaths > _MOST_DEATHS:
            raise ShiftViTError(
                f"{deaths} actors in turn died while processing the block of {name!r}, perhaps because an image "
                "crashed them or memory ran out (--max-pixels, --batch-size and --workers limit memory)"
            )
        out.write(begun, b"." * (deaths + 1))
        for attempt in range(TRIES):
            try:
                content, failures = self._compute_rows(json.loads(zlib.decompress(entries)))
                break
            except OSError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(_PAUSE)
        out.write(name, content)
        out.delete(begun)
        return failures

    def _compute_rows(self, entries: list[Any]) -> tuple[bytes, int]:
        task, model = self._task, self._load()
        options = {"batch_size": task.batch_size, "threads": task.threads, "max_pixels": task.max_pixels}
        if isinstance(model, Predictor):
            options["top_k"] = task.top_k
        results = list(model.stream(read_entries(entries, task.storages), ahead=2 * task.batch_size, **options))
        return encode(results, task.kind, task.features), sum(isinstance(result, Failure) for result in results)

    def _load(self) -> Predictor | Embedder:
        if self._model is None:
            import ray

            task = self._task
            with files.make_temporary_folder(Path(gettempdir()), "shiftvit-model") as place:
                model_files = ray.get(self._reference)
                for name, content in model_files.items():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    (place / name).write_bytes(content)
                load = _LOADERS[task.command].from_pretrained
                # An OpenVINO model has a second file, beside the first.
                entry = next(iter(model_files)).split("/")[0]
                self._model = load(place / entry, runtime=task.runtime, threads=task.threads)
        return self._model

    def _check(self, out: OutputFolder) -> None:
        """Checks once that this node has the same shiftvit and the same files as the one that started the run."""
        if self._model is not None:
            return
        task, node = self._task, f"the node {platform.node()!r}"
        if __version__ != task.version:
            raise ShiftViTError(
                f"{node} has shiftvit {__version__}, but the run needs {task.version}; install that on all nodes"
            )
        missing = [str(out)] if not out.has(RUN_FILE) else [root for root in task.roots if not Path(root).is_dir()]
        if missing:
            raise ShiftViTError(f"{node} has no {missing[0]!r}; name a folder that all nodes share, or a URI")


def count_actors(nodes: Sequence[dict[str, Any]], threads: int) -> int:
    """Returns how many actors fit on the nodes that `ray.nodes` returned; at least 1.

    Raises:
        ShiftViTError: no node has enough cores for one. Ray would wait for such a node without an end.
    """
    cores = [node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]]
    largest = max(cores, default=0)
    # A cluster that grows with its work may begin with a head that has no cores.
    if 0 < largest < threads - SPARE_CORES:
        raise ShiftViTError(
            f"threads={threads} needs a node with as many cores, but the largest has {largest:g}; use fewer threads"
        )
    return max(1, sum(int(count // threads) for count in cores))


def pack(entries: Sequence[Any]) -> bytes:
    """Returns the entries of a block, compressed; their paths have much in common."""
    return zlib.compress(json.dumps(entries).encode())


def digest_run(manifest: dict[str, Any]) -> str:
    """Returns a SHA-256 of what the rows of a run depend on, in hexadecimal; the model's path may change."""
    lasting = {name: value for name, value in manifest.items() if name != "model"}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


def count_digits(blocks: int) -> int:
    """Returns how many digits the names of the files of this many blocks have; at least 6."""
    return max(Task.digits, len(str(blocks - 1)))


def name_part(number: int, kind: str | None, digits: int = Task.digits) -> str:
    """Returns the name of a block's file. The files, sorted by name, have the rows in the order of the input."""
    return f"part-{number:0{digits}}.{kind}"


def encode(results: Sequence[Any], kind: str | None, features: int | None) -> bytes:
    """Returns the content of a block's file: rows as from `shiftvit predict`, or features, with errors for failures.

    Args:
        results: from `Predictor.stream`, or from `Embedder.stream` if `features` is set.
        kind: "jsonl" or "parquet".
        features: as `ModelFiles.features`.
    """
    if kind == "jsonl":
        lines = [json.dumps(to_row(result), ensure_ascii=False, allow_nan=False) for result in results]
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    errors = [getattr(result, "error", None) for result in results]
    columns = {"path": make_texts(result.path for result in results)}
    if features is None:
        top = pa.list_(pa.struct([("label", pa.string()), ("confidence", pa.float64())]))
        rows = [to_row(result) for result in results]
        columns["label"] = pa.array([row.get("label") for row in rows], pa.string())
        columns["confidence"] = pa.array([row.get("confidence") for row in rows], pa.float64())
        pairs = [[{"label": label, "confidence": share} for label, share in row.get("top", ())] for row in rows]
        columns["top"] = pa.array(pairs, top, mask=np.array([error is not None for error in errors], bool))
    else:
        empty = np.zeros(features, np.float32)
        flat = np.concatenate([getattr(result, "features", empty) for result in results])
        mask = pa.array([error is not None for error in errors], pa.bool_())
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), features, mask=mask)
    columns["error"] = make_texts(errors)
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def count_errors(content: bytes, kind: str | None) -> int:
    """Returns how many rows of a block's file are errors."""
    if kind == "jsonl":
        return sum("error" in json.loads(line) for line in content.splitlines())
    from pyarrow import BufferReader, parquet

    errors = parquet.read_table(BufferReader(content), columns=["error"]).column("error")
    return len(errors) - int(errors.null_count)
