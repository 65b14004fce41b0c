"""The routes under `/v1`: pictures in, labels out, in the form of Hugging Face's image classification."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from shiftvit.serve.answers import Json, Refused
from shiftvit.serve.bodies import Bodies, parse_json
from shiftvit.serve.model import ServedModel, find_model

_TOP_K = 5
_MOST = 1000


class Class(BaseModel):
    """A class and its probability."""

    label: str
    score: float = Field(ge=0, le=1)


class Error(BaseModel):
    """Why a request was refused."""

    error: str


class ModelInfo(BaseModel):
    """A model of this server."""

    name: str
    labels: list[str]
    input_shape: list[int] = Field(description="height, width, channels of what the model sees")
    precision: str
    runtime: str


_REASONS = {
    400: "the request is malformed",
    401: "the API key is missing or wrong",
    403: "the request comes from a page of another origin",
    404: "there is no such model",
    408: "the body did not arrive in time",
    413: "the body or the picture is too large",
    415: "the body is no image of a supported format, or a form",
    422: "a value is not valid, or the image cannot be decoded",
    503: "the server is overloaded or stopping",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of error answers for OpenAPI."""
    return {status: {"model": Error, "description": _REASONS[status]} for status in statuses}


_POSTED = errors(*_REASONS)
_INPUTS = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "string", "format": "byte", "description": "the bytes of an image in base64"},
        "parameters": {"type": "object", "properties": {"top_k": {"type": "integer", "minimum": 1, "maximum": _MOST}}},
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": _INPUTS},
        },
    }
}
TopK = Annotated[int, Query(ge=1, le=_MOST, description="how many classes to return")]


def make_router(models: dict[str, ServedModel], bodies: Bodies) -> APIRouter:
    """Returns the routes under `/v1`, and the one at `/` where Hugging Face's inference endpoints listen."""
    router = APIRouter(tags=["classify"])

    async def answer(request: Request, name: str | None, top_k: int) -> Response:
        model = find_model(models, name)
        async with bodies.read(request) as body:
            content, top_k = await read_inputs(request, body, top_k)
            return Json(await model.classify(content, top_k))

    @router.post("/", response_model=list[Class], responses=_POSTED, openapi_extra=_BODY, include_in_schema=False)
    @router.post("/v1/classify", response_model=list[Class], responses=_POSTED, openapi_extra=_BODY)
    async def classify(request: Request, top_k: TopK = _TOP_K) -> Response:
        """Classifies a picture with the first model."""
        return await answer(request, None, top_k)

    @router.post("/v1/models/{name}/classify", response_model=list[Class], responses=_POSTED, openapi_extra=_BODY)
    async def classify_with(request: Request, name: str, top_k: TopK = _TOP_K) -> Response:
        """Classifies a picture with a model of this server."""
        return await answer(request, name, top_k)

    @router.get("/v1/models", response_model=list[ModelInfo], responses=errors(401))
    async def list_models() -> Response:
        """Lists the models; the first is the default."""
        return Json([describe_model(model) for model in models.values()])

    return router


def describe_model(model: ServedModel) -> dict[str, Any]:
    """Returns what clients need to know of a model."""
    metadata = model.graph.metadata
    return {
        "name": model.name,
        "labels": list(model.labels),
        "input_shape": list(metadata.input_shape),
        "precision": metadata.precision,
        "runtime": model.graph.runtime,
    }


async def read_inputs(request: Request, body: bytes, top_k: int) -> tuple[bytes, int]:
    """Returns the bytes of the picture and the number of classes that a request asks for.

    Any type of content is taken as a picture, except JSON and forms: `curl --data-binary` declares a form of its own.

    Raises:
        Refused: the body is a form of several parts, or its JSON is not as described.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise Refused(415, "a form of several parts is not read; send the image itself: curl --data-binary @cat.jpg")
    if kind != "application/json":
        return body, top_k
    tree = await parse_json(body)
    inputs, parameters = tree.get("inputs"), tree.get("parameters") or {}
    if not isinstance(inputs, str) or not isinstance(parameters, dict):
        raise Refused(422, 'the JSON must be {"inputs": "<base64>", "parameters": {"top_k": 5}}')
    top_k = top_k if parameters.get("top_k") is None else parameters["top_k"]
    if type(top_k) is not int or not 1 <= top_k <= _MOST:
        raise Refused(422, f"parameters.top_k must be a whole number from 1 to {_MOST}")
    try:
        return base64.b64decode(inputs, validate=True), top_k
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "inputs must be the bytes of an image in base64; addresses are never fetched") from error
