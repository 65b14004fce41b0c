"""`ServedModel`: a model with its queue, its session and its decoding threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.bundle.stored.find import find_bundle
from shiftvit.bundle.stored.manifest import GRAPH, read_manifest
from shiftvit.data.decode.formats import find_kind
from shiftvit.data.decode.images import decode
from shiftvit.data.decode.readers import FORMATS
from shiftvit.errors import ShiftViTError, suggest
from shiftvit.inference.explainer import Explainer
from shiftvit.inference.predict import rank_classes
from shiftvit.inference.runtimes import Graph, load_graph
from shiftvit.serve.answers import Refused, refuse_full
from shiftvit.serve.batching import Batcher, Pixels, Rows
from shiftvit.serve.heat import lay_out
from shiftvit.serve.limits import Limits
from shiftvit.serve.measures import Measures

# Pictures up to this size are decoded in a tenth of a millisecond. The pixels are counted before decoding, except those
# of formats whose decoders may decode more pixels than the file declares.
_SMALL_BYTES, _SMALL_PIXELS = 2**15, 2**14
_UNCOUNTED = {"AVIF", "HEIC"}


class ServedModel:
    """A model that answers requests.

    Attributes:
        name: its name in addresses.
        graph: the model in its runtime.
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        limits: Limits,
        decoders: ThreadPoolExecutor,
        measures: Measures,
    ) -> None:
        self.name, self.graph, self._limits, self._decoders = name, graph, limits, decoders
        self.labels, self.capacity = graph.metadata.labels, limits.queue
        height, width, _ = graph.metadata.example_shape
        self.batcher = Batcher(
            graph.run,
            limits.choose_batch_size(height, width),
            limits.queue,
            limits.max_buffered,
            partial(measures.count_batch, name),
        )
        measures.watch_queue(name, lambda: self.batcher.pending)
        self._explaining = asyncio.Lock()
        self._explainer: Explainer | None = None
        self._no_explainer = ""
        self._digest = _read_digest(graph.model)
        # A warm-up, because the first call of a session allocates its memory.
        graph.run(np.zeros((1, *graph.metadata.example_shape), np.uint8))

    async def classify(self, content: bytes, top_k: int) -> list[dict[str, Any]]:
        """Returns the most probable classes of an encoded picture, as Hugging Face's image classification does.

        Raises:
            Refused: the picture cannot be decoded, the queue is full, or there is no result within the limit.
        """
        with self.batcher.admit(1):
            async with self._limit_time():
                pixels = self._decode_small(content)
                if pixels is None:
                    pixels = await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, content)
                row = (await self._run(pixels))[0]
        return self._rank_classes(row, top_k)

    def _rank_classes(self, row: Rows, top_k: int) -> list[dict[str, Any]]:
        return [{"label": self.labels[index], "score": float(row[index])} for index in rank_classes(row, top_k)]

    async def explain(self, content: bytes, top_k: int, label: str | None) -> dict[str, Any]:
        """Returns the most probable classes of an encoded picture, and a heat map for one of them.

        Raises:
            Refused: as `classify`; there is no such label; or the model has no graph that returns the last feature map.
        """
        explainer = await self.load_explainer()
        if explainer is None:
            raise Refused(404, f"the model {self.name!r} cannot explain: {self._no_explainer}")
        if label is not None and label not in self.labels:
            raise Refused(422, f"the model has no class {label[:80]!r}; /v1/models lists them")
        with self.batcher.admit(1):
            run = partial(self._explain, explainer, content, top_k, label)
            async with self._limit_time():
                return await asyncio.get_running_loop().run_in_executor(self._decoders, run)

    def _explain(self, explainer: Explainer, content: bytes, top_k: int, label: str | None) -> dict[str, Any]:
        image = self._read(content)
        preprocess = explainer.metadata.preprocess
        probabilities, maps = explainer.run(preprocess.pixels(image[None]))
        self._check(probabilities)
        classes = self._rank_classes(probabilities[0], top_k)
        shown = label or classes[0]["label"]
        heat = explainer.compute_heat(maps, np.array([self.labels.index(shown)]))[0]
        return {"classes": classes, "label": shown, **lay_out(heat, preprocess, *image.shape[:2])}

    async def load_explainer(self) -> Explainer | None:
        """Returns the explainer, which is loaded at the first call; None if the model has none."""
        async with self._explaining:
            if self._explainer is None and not self._no_explainer:
                try:
                    explainer = await asyncio.to_thread(Explainer.from_pretrained, self.graph.model, threads=1)
                except ShiftViTError:  # not shown to clients, because it may name a path
                    self._no_explainer = "it needs a bundle with a graph that `shiftvit pack --onnx` wrote"
                    return None
                if explainer.digest == self._digest:
                    self._explainer = explainer
                else:
                    self._no_explainer = "its files have changed since the server started"
        return self._explainer

    async def infer(self, pixels: Pixels) -> Rows:
        """Returns probabilities (N, C) for uint8 (N, H, W, 3), whose N images were admitted.

        Raises:
            Refused: too many pixels wait, or the model returned NaN or infinity, or no result within the limit.
        """
        async with self._limit_time():
            return await self._run(pixels)

    async def _run(self, pixels: Pixels) -> Rows:
        rows = await self.batcher.run(pixels)
        self._check(rows)
        return rows

    @asynccontextmanager
    async def _limit_time(self) -> AsyncIterator[None]:
        """Raises Refused if the block takes longer than a result may."""
        try:
            async with asyncio.timeout(self._limits.timeout):
                yield
        except TimeoutError as error:
            raise refuse_full() from error

    def _check(self, rows: Rows) -> None:
        if not np.isfinite(rows).all():
            raise Refused(500, f"the model {self.name!r} returned NaN or infinity for this image")

    def _decode(self, content: bytes) -> Pixels:
        """Returns an encoded picture as the model's input, (1, h, w, 3)."""
        return self.graph.metadata.preprocess.pixels(self._read(content)[None])

    def _decode_small(self, content: bytes) -> Pixels | None:
        """Does the same if that is faster than handing it to another thread; None: it would be slower, or fails."""
        if len(content) > _SMALL_BYTES or find_kind(content) in _UNCOUNTED:
            return None
        rule = self.graph.metadata.preprocess
        try:
            return rule.pixels(
                decode(content, max_pixels=min(_SMALL_PIXELS, self._limits.max_pixels), **rule.decoding)[None]
            )
        except ShiftViTError:
            return None

    def _read(self, content: bytes) -> Pixels:
        """Returns an encoded picture (H, W, 3), decoded as `Predictor` does it."""
        if find_kind(content) is None:
            raise Refused(415, "the body is not an image of a supported format; send one of " + ", ".join(FORMATS))
        metadata = self.graph.metadata
        try:
            image = decode(
                content,
                name="image",
                max_pixels=self._limits.max_pixels,
                max_bytes=self._limits.max_bytes,
                **metadata.preprocess.decoding,
            )
            metadata.check_sides(*image.shape[:2])
            return image
        except ShiftViTError as error:
            raise Refused(413 if "max_pixels" in str(error) else 422, str(error)) from error


def _read_digest(model: str) -> str | None:
    """Returns the SHA-256 of a model's graph; None if it has none that an explainer can use."""
    try:
        return read_manifest(find_bundle(model)).files.get(GRAPH)
    except ShiftViTError:
        return None


def load_models(
    models: Sequence[str],
    limits: Limits,
    decoders: ThreadPoolExecutor,
    measures: Measures,
    runtime: str = "auto",
    threads: int | None = None,
) -> dict[str, ServedModel]:
    """Loads models by name, path or `NAME=PATH`; the first is the default.

    Returns:
        name to model. A model's name is the last part of its path, without a suffix.

    Raises:
        ShiftViTError: a model does not load, or two have the same name.
    """
    places: dict[str, str] = {}
    for model in models:
        # A path may contain "=" itself.
        name, place = model.split("=", 1) if "=" in model and not Path(model).exists() else ("", model)
        path = Path(place).resolve()
        name = name or (path.stem if path.is_file() else path.name)
        if name in places:
            raise ShiftViTError(
                f"{places[name]!r} and {place!r} would both be called {name!r}; give one another name: OTHER={place}"
            )
        if not name.isprintable() or "/" in name:
            raise ShiftViTError(f"{name!r} cannot be part of a URL; give the model another name: NAME={place}")
        places[name] = place
    return {
        name: ServedModel(name, load_graph(place, runtime, threads), limits, decoders, measures)
        for name, place in places.items()
    }


def find_model(models: dict[str, ServedModel], name: str) -> ServedModel:
    """Returns a model by name.

    Raises:
        Refused: there is no model of that name.
    """
    if name not in models:
        raise Refused(404, f"there is no model {name!r}; {suggest(name, models)}")
    return models[name]
