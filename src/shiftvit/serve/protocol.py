"""The routes under `/v2`: the Open Inference Protocol (KServe, Triton), JSON and its binary extension.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from shiftvit.errors import ShiftViTError
from shiftvit.serve.answers import Json, Refused, describe_errors
from shiftvit.serve.batching import Pixels, Rows
from shiftvit.serve.bodies import Bodies, parse_json
from shiftvit.serve.model import ServedModel, find_model

# The only version of every model.
_VERSION = "1"
# Numbers of a list that are converted at a time.
_PIECE = 2**16
_HEADER = "inference-header-content-length"
_POSTED = describe_errors(400, 401, 403, 404, 408, 413, 415, 422, 503)
_IMAGES = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"const": "images"},
        "datatype": {"const": "UINT8"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array"},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _IMAGES},
    },
}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}}}


def make_router(models: dict[str, ServedModel], bodies: Bodies, version: str, is_ready: Any) -> APIRouter:
    """Returns the routes under `/v2`; `is_ready` returns whether the server takes requests."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])

    @router.get("", responses=describe_errors(401))
    async def server() -> dict[str, Any]:
        """Describes the server."""
        return {"name": "shiftvit", "version": version, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Answers as long as the process works."""
        return {"live": True}

    @router.get("/health/ready", responses=describe_errors(503))
    async def ready() -> Response:
        """Answers 200 if requests are taken."""
        if not is_ready():
            raise Refused(503, "the server is stopping; try again", {"Retry-After": "1"})
        return Json({"ready": True})

    def find(name: str, version: str) -> ServedModel:
        model = find_model(models, name)
        if version != _VERSION:
            raise Refused(404, f"the model {name!r} has no version {version[:40]!r}, only {_VERSION}")
        return model

    for end in ("", "/versions/{model_version}"):
        shown = not end

        @router.get("/models/{name}" + end, responses=describe_errors(401, 404), include_in_schema=shown)
        async def describe(name: str, model_version: str = _VERSION) -> dict[str, Any]:
            """Describes a model's inputs and outputs."""
            return _describe(find(name, model_version))

        @router.get(
            "/models/{name}" + end + "/ready", responses=describe_errors(401, 404, 503), include_in_schema=shown
        )
        async def model_ready(name: str, model_version: str = _VERSION) -> Response:
            """Answers 200 if the model takes requests."""
            find(name, model_version)
            return await ready()

        @router.post("/models/{name}" + end + "/infer", responses=_POSTED, openapi_extra=_BODY, include_in_schema=shown)
        async def infer(request: Request, name: str, model_version: str = _VERSION) -> Response:
            """Returns the probabilities of preprocessed images, UINT8 [N, H, W, 3]."""
            model = find(name, model_version)
            async with bodies.read(request) as body:
                return await _infer(model, request, body)

    return router


def _describe(model: ServedModel) -> dict[str, Any]:
    metadata = model.graph.metadata
    return {
        "name": model.name,
        "versions": [_VERSION],
        "platform": f"shiftvit_{model.graph.runtime}",
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": [-1, *(side or -1 for side in metadata.input_shape)]}
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, len(model.labels)]}],
    }


async def _infer(model: ServedModel, request: Request, body: bytes) -> Response:
    declared = request.headers.get(_HEADER, str(len(body)))
    # 18 digits are enough for any body, and Python refuses to convert thousands.
    length = int(declared) if declared.isdecimal() and len(declared) <= 18 else -1
    if not 0 < length <= len(body):
        raise Refused(
            400, f"the header {_HEADER}: {declared[:40]!r} must be the length of the JSON, 1 to {len(body)} bytes"
        )
    tree = await parse_json(body[:length])
    pixels = await asyncio.to_thread(_read_pixels, tree, body[length:], model)
    binary = _wants_binary(tree)
    with model.batcher.admit(len(pixels)):
        rows = await model.infer(pixels)
    return _answer(model, tree.get("id"), rows, binary)


def _read_pixels(tree: dict[str, Any], rest: bytes, model: ServedModel) -> Pixels:
    """Returns the images of a request, (N, H, W, 3)."""
    inputs = tree.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(422, "inputs must be a list of one tensor, called images")
    tensor = inputs[0]
    if tensor.get("name") != "images" or tensor.get("datatype") != "UINT8":
        raise Refused(422, "the input must have the name images and the datatype UINT8")
    shape: Any = tensor.get("shape")
    sides = (None, *model.graph.metadata.input_shape)
    fits = isinstance(shape, list) and len(shape) == 4 and all(type(side) is int and side > 0 for side in shape)
    if not fits or any(side not in (None, given) for side, given in zip(sides, shape, strict=True)):
        wanted = ["any" if side is None else side for side in sides[1:]]
        raise Refused(422, f"the shape of images must be [N, {', '.join(map(str, wanted))}] with N at least 1")
    try:
        model.graph.metadata.check_sides(*shape[1:3])
    except ShiftViTError as error:
        raise Refused(422, str(error)) from error
    most = model.capacity
    if shape[0] > most:
        raise Refused(413, f"{shape[0]} images are more than {most}, the queue's length; send fewer at a time")
    size = _read_parameters(tensor).get("binary_data_size")
    if size is None:
        return _convert_lists(tensor.get("data"), shape)
    if size != len(rest) or size != math.prod(shape):
        raise Refused(
            422,
            f"binary_data_size={size!r} must be {math.prod(shape)}, the bytes after the JSON; there are {len(rest)}",
        )
    return np.frombuffer(rest, np.uint8).reshape(shape)


def _convert_lists(data: Any, shape: list[int]) -> Pixels:
    count = math.prod(shape)
    problem = Refused(422, f"data must be {count} whole numbers from 0 to 255, flat or nested like the shape")
    nested = isinstance(data, list) and len(data) == shape[0] and isinstance(data[0], list)
    if not isinstance(data, list) or not (nested or len(data) == count):
        raise problem
    # In pieces, since converting a list holds the interpreter.
    step = 1 if nested else _PIECE
    content = bytearray()
    for first in range(0, len(data), step):
        piece = data[first : first + step]
        for side in shape[1:] if nested else ():
            if set(map(type, piece)) != {list} or set(map(len, piece)) != {side}:
                raise problem
            piece = list(itertools.chain.from_iterable(piece))
        # Before any conversion: a list of texts could become an array of gigabytes. To Python, True is a number.
        if set(map(type, piece)) != {int}:
            raise problem
        try:
            content += bytes(piece)
        except ValueError as error:
            raise problem from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _wants_binary(tree: dict[str, Any]) -> bool:
    """Returns whether a request asks for binary data in the answer."""
    outputs = [] if tree.get("outputs") is None else tree["outputs"]
    everywhere = _read_parameters(tree).get("binary_data_output") is True
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise Refused(422, "outputs must be a list of objects, or left out")
    if any(output.get("name") != "probabilities" for output in outputs) or len(outputs) > 1:
        raise Refused(422, "the only output is called probabilities")
    if any("classification" in _read_parameters(output) for output in outputs):
        raise Refused(422, "the classification extension is not supported; use /v1/classify")
    return any(_read_parameters(output).get("binary_data", everywhere) is True for output in outputs or [{}])


def _read_parameters(tree: dict[str, Any]) -> dict[str, Any]:
    parameters = tree.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _answer(model: ServedModel, request_id: Any, rows: Rows, binary: bool) -> Response:
    output: dict[str, Any] = {"name": "probabilities", "datatype": "FP32", "shape": list(rows.shape)}
    tree: dict[str, Any] = {"model_name": model.name, "model_version": _VERSION, "outputs": [output]}
    if isinstance(request_id, str):
        tree["id"] = request_id
    if not binary:
        output["data"] = rows.ravel().tolist()
        return Json(tree)
    content = rows.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps(tree).encode("ascii")
    return Response(head + content, 200, {_HEADER: str(len(head))}, "application/octet-stream")
