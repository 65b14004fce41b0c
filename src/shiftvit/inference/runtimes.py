"""The table of runtimes. Each loads its kinds of files as a `Graph`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.metadata import FILE, KEY, Metadata, make_metadata
from shiftvit.bundle.session import open_graph
from shiftvit.bundle.stored.container import Container, open_container
from shiftvit.bundle.stored.digests import check_artifact
from shiftvit.bundle.stored.find import PRETRAINED, find_bundle, is_model, notice_same_name
from shiftvit.bundle.stored.manifest import GRAPH, MANIFEST, read_checked, read_manifest
from shiftvit.environment import adds_int8_exactly, count_cores
from shiftvit.errors import ShiftViTError, check_at_least, check_path, describe_error, suggest, suggest_install
from shiftvit.telemetry import import_silently
from shiftvit.threads import take_turns

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Graph:
    """A model that is ready to run.

    A pickle holds the model's path, and unpickling loads the model again.

    Attributes:
        metadata: its labels, preprocessing and input size.
        run: maps pixels, uint8 (N, H, W, 3) of that size, to probabilities, float32 (N, C), for N of at least 1. Any
            number of threads may call it at once.
        runtime: the name of the runtime.
        model: where the model was found: an absolute path, or the name of a model that comes with the package.
        threads: CPU threads; None: one for each core.
    """

    metadata: Metadata
    run: Callable[[Pixels], Probabilities]
    runtime: str
    model: str
    threads: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return load_graph, (self.model, self.runtime, self.threads)


@dataclass(frozen=True)
class Runtime:
    """A row of the table.

    Attributes:
        module: the module that it needs.
        reads: the kinds of models that it reads.
        load: takes the file, or a bundle's files, and the number of threads; returns the metadata and `Graph.run`.
        saturates: whether its int8 kernels for x86 can saturate on processors without VNNI.
        parallel: whether several threads may run it at once; otherwise they take turns.
        executes: whether loading or running a malicious file can execute code, or read and write files.
    """

    module: str
    reads: tuple[str, ...]
    load: Callable[[Any, int], tuple[Metadata, Callable[[Pixels], Probabilities]]]
    saturates: bool = False
    parallel: bool = False
    executes: bool = False


def load_graph(model: str | Path, runtime: str = "auto", threads: int | None = None) -> Graph:
    """Loads a model for inference.

    Args:
        model: a run folder, a bundle, the name of a model that was pulled or comes with the package, or an export:
            its folder or the artifact in it.
        runtime: a key of `RUNTIMES`; "auto": the first installed one that reads such a model, in the order of measured
            speed. SavedModels and torch programs are loaded only if their runtime is named, because a malicious file
            can execute code.
        threads: CPU threads; None: one for each core.

    Raises:
        ShiftViTError: the model or runtime does not exist or is not installed, the runtime does not read this kind of
            model, a file is damaged or has no metadata, or `threads` is below 1.
    """
    check_at_least("threads", threads, 1)
    kind, source = identify(model)
    if not isinstance(runtime, str) or runtime not in ("auto", *RUNTIMES):
        raise ShiftViTError(f"there is no runtime {runtime!r}; {suggest(runtime, [*RUNTIMES, 'auto'])}")
    able = [name for name, row in RUNTIMES.items() if kind in row.reads]
    if runtime == "auto":
        able = [name for name in able if not RUNTIMES[name].executes] or able
        if RUNTIMES[able[0]].executes:
            raise ShiftViTError(
                f"{str(model)!r} ({kind}) can execute code when loaded; if you trust it, add --runtime {able[0]}"
            )
        runtime = next((name for name in able if _is_installed(name)), able[0])
    elif runtime not in able:
        mend = "add the graph with `shiftvit pack --onnx`, or " if kind == "bundle without a graph" else ""
        raise ShiftViTError(
            f"{str(model)!r} ({kind}) runs in {' or '.join(able)}, not in {runtime}; {mend}write another format with "
            "`shiftvit export`"
        )
    row = RUNTIMES[runtime]
    if not _is_installed(runtime):
        raise ShiftViTError(f"the runtime {runtime!r} is not installed; {suggest_install(row.module)}")
    place = source if isinstance(source, Path) else source.where
    origin = repr(str(place))
    try:
        if isinstance(source, Path):
            check_artifact(source)
        metadata, run = row.load(source, threads or count_cores())
        shape = None
        if runtime != "keras":  # whose weights are verified, and a run would compile it
            # Some damage shows only when a graph runs.
            shape = run(np.zeros((1, *metadata.example_shape), np.uint8)).shape[1:]
        if not isinstance(source, Path):
            metadata.check_labels(read_manifest(source).labels, origin)
    except (ShiftViTError, ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything in the library that reads it
        raise ShiftViTError(
            f"{origin} cannot be loaded ({describe_error(error)}); it may be damaged: restore it, or export it again"
        ) from error
    if metadata.precision == "int8" and metadata.saturates is None and row.saturates and not adds_int8_exactly():
        raise ShiftViTError(
            f"{origin} is an int8 export that was not checked for saturation, so it may give wrong answers on this "
            "processor, which has no VNNI instructions; export it again"
        )
    if shape not in (None, (len(metadata.labels),)):
        raise ShiftViTError(
            f"{origin} returns the shape {shape} for one image but has {len(metadata.labels)} labels; export it again"
        )
    return Graph(metadata, run if row.parallel else take_turns(run), runtime, name_model(model, place), threads)


def name_model(model: str | Path, place: Path) -> str:
    """Returns a name or path by which another process, or one in another folder, finds the model."""
    return str(model) if place.parent == PRETRAINED else str(place.absolute())


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(RUNTIMES[name].module) is not None


def identify(model: str | Path) -> tuple[str, Any]:
    """Returns the kind of model at a path, and the path or the bundle's files."""
    check_path("model", model)
    path = Path(model)
    if path.is_dir() and open_container(path, MANIFEST) is None:
        # An export: an artifact with its report beside it.
        entries = {entry: entry.suffix.lower() for entry in sorted(path.iterdir())}
        found = [entry for entry, suffix in entries.items() if suffix in _SUFFIXES or entry.name == "saved_model"]
        if len(found) > 1 and not is_model(model):
            names = ", ".join(entry.name for entry in found)
            raise ShiftViTError(
                f"{str(model)!r} holds several models ({names}); name one: --model {shlex.quote(str(found[0]))}"
            )
        if len(found) == 1:
            path = found[0]
    kind = _SUFFIXES.get(path.suffix.lower()) if path.is_file() else None
    kind = "SavedModel" if (path / "saved_model.pb").is_file() else kind
    if kind is not None:
        notice_same_name(str(model))
        return kind, path
    container = find_bundle(model)
    has_graph = GRAPH in read_manifest(container).files
    return ("bundle with a graph" if has_graph else "bundle without a graph"), container


def _load_keras(container: Container, threads: int) -> tuple[Metadata, Callable[[Pixels], Probabilities]]:
    from shiftvit.backend import limit_threads

    limit_threads(threads)

    bundle = Bundle.load(container.where)
    metadata, model = make_metadata(bundle), bundle.build("float32")
    normalised = metadata.preprocess.normalised
    return metadata, lambda pixels: bundle.probabilities(model.predict_on_batch(normalised(pixels)))


def _load_onnxruntime(source: Any, threads: int) -> tuple[Metadata, Callable[[Pixels], Probabilities]]:
    content, origin = read_onnx(source)
    session, name, metadata = open_graph(content, threads, origin)
    wanted = [session.get_outputs()[0].name]
    return metadata, lambda pixels: session.run(wanted, {name: pixels})[0]


def find_weights(xml: Path) -> Path:
    """Returns the file of an OpenVINO graph's weights, whose suffix may have capitals too."""
    upper = xml.with_suffix(".BIN")
    return upper if upper.exists() else xml.with_suffix(".bin")


def read_onnx(source: Any) -> tuple[bytes, str]:
    """Returns the serialised graph of an ONNX file or of a bundle's files, and its name for messages."""
    if isinstance(source, Path):
        return source.read_bytes(), repr(str(source))
    return read_checked(source, read_manifest(source), GRAPH), f"{GRAPH!r} in {str(source.where)!r}"


def _load_openvino(source: Any, threads: int) -> tuple[Metadata, Callable[[Pixels], Probabilities]]:
    openvino = import_silently("openvino")
    core = openvino.Core()
    xml = isinstance(source, Path) and source.suffix.lower() == ".xml"
    content, origin = (source, repr(str(source))) if xml else read_onnx(source)
    model = core.read_model(content, find_weights(source)) if xml else core.read_model(content)
    # The metadata of an ONNX graph appear under "framework".
    place = [KEY] if xml else ["framework", KEY]
    metadata = Metadata.parse(model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None, origin)
    compiled = core.compile_model(
        model,
        "CPU",
        {
            # By default OpenVINO computes a float32 graph in bfloat16 on processors that support it.
            "INFERENCE_PRECISION_HINT": "bf16" if metadata.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    return metadata, lambda pixels: np.array(compiled(pixels)[0])


def _load_tensorflow(path: Path, threads: int) -> tuple[Metadata, Callable[[Pixels], Probabilities]]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    with contextlib.suppress(RuntimeError):  # TensorFlow already runs, with its own number of threads
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    extra = path / "assets.extra" / FILE
    metadata = Metadata.parse(extra.read_bytes() if extra.is_file() else None, repr(str(path)))
    loaded = tensorflow.saved_model.load(str(path))

    def run(pixels: Pixels) -> Probabilities:
        # The closure keeps `loaded` alive, which owns the variables of its functions.
        serve = loaded.signatures["serving_default"]
        return np.asarray(serve(images=tensorflow.constant(pixels))["probabilities"])

    return metadata, run


def _load_litert(path: Path, threads: int) -> tuple[Metadata, Callable[[Pixels], Probabilities]]:
    from ai_edge_litert.interpreter import Interpreter

    container = open_container(path, FILE)
    metadata = Metadata.parse(container.read(FILE) if container else None, repr(str(path)))
    interpreter = Interpreter(str(path), num_threads=threads)
    entry, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    count = 0

    def run(pixels: Pixels) -> Probabilities:
        nonlocal count
        if len(pixels) != count:
            count = 0  # in case one of the next calls fails
            interpreter.resize_tensor_input(entry, pixels.shape)
            interpreter.allocate_tensors()
            count = len(pixels)
        interpreter.set_tensor(entry, pixels)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result), np.float32)

    return metadata, run


def _load_torch(path: Path, threads: int) -> tuple[Metadata, Callable[[Pixels], Probabilities]]:
    import torch

    torch.set_num_threads(threads)
    extra = {FILE: ""}
    module = torch.export.load(str(path), extra_files=extra).module()

    def run(pixels: Pixels) -> Probabilities:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()  # type: ignore[no-any-return]

    return Metadata.parse(extra[FILE], repr(str(path))), run


_SUFFIXES = {".onnx": "ONNX", ".xml": "OpenVINO", ".tflite": "LiteRT", ".pt2": "torch.export"}

RUNTIMES = {
    "onnxruntime": Runtime(
        "onnxruntime", ("bundle with a graph", "ONNX"), _load_onnxruntime, saturates=True, parallel=True
    ),
    "openvino": Runtime("openvino", ("bundle with a graph", "ONNX", "OpenVINO"), _load_openvino, saturates=True),
    "litert": Runtime("ai_edge_litert", ("LiteRT",), _load_litert),
    "tensorflow": Runtime("tensorflow", ("SavedModel",), _load_tensorflow, parallel=True, executes=True),
    "torch": Runtime("torch", ("torch.export",), _load_torch, parallel=True, executes=True),
    "keras": Runtime("keras", ("bundle with a graph", "bundle without a graph"), _load_keras),
}
