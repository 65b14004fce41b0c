"""The routes that classify pictures, in the format of Hugging Face's image classification."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.responses import Response

from shiftvit.serve.answers import Json, Refused, describe_errors
from shiftvit.serve.bodies import Bodies, parse_json
from shiftvit.serve.model import ServedModel, find_model

_TOP_K = 5
_MOST = 1000


class Class(BaseModel):
    """A class and its probability."""

    label: str
    score: float = Field(ge=0, le=1)


class Explanation(BaseModel):
    """A prediction, and the parts of the image that it comes from."""

    classes: list[Class]
    label: str = Field(description="the class that the heat map explains")
    heatmap: str = Field(description="a PNG in base64 to lay over the region; transparent where nothing supports it")
    region: list[float] = Field(
        description="left, top, width, height of the part that the model saw, as fractions of the image"
    )


_POSTED = describe_errors(400, 401, 403, 404, 408, 413, 415, 422, 503)
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
Label = Annotated[str | None, Query(description="the class to explain; by default the most probable one")]
TopK = Annotated[int, Query(ge=1, le=_MOST, description="how many classes to return")]


class _Route(APIRoute):
    """Skips the search for parameters in a request without any, which would take a tenth of the server's own time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer_with_parameters = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if request.scope["query_string"] or request.path_params:
                return await answer_with_parameters(request)
            return cast(Response, await self.endpoint(request))

        return answer


def make_router(models: dict[str, ServedModel], bodies: Bodies) -> APIRouter:
    """Returns the routes that classify, and the one at `/` where Hugging Face's inference endpoints listen."""
    router = APIRouter(tags=["classify"], route_class=_Route)
    first = next(iter(models))

    @router.post("/v1/models/{name}/classify", response_model=list[Class], responses=_POSTED, openapi_extra=_BODY)
    async def classify_with(request: Request, name: str, top_k: TopK = _TOP_K) -> Response:
        """Classifies a picture with a model of this server."""
        model = find_model(models, name)
        async with bodies.read(request) as body:
            content, top_k = await read_inputs(request, body, top_k)
            return Json(await model.classify(content, top_k))

    @router.post("/", response_model=list[Class], responses=_POSTED, openapi_extra=_BODY, include_in_schema=False)
    @router.post("/v1/classify", response_model=list[Class], responses=_POSTED, openapi_extra=_BODY)
    async def classify(request: Request, top_k: TopK = _TOP_K) -> Response:
        """Classifies a picture with the first model."""
        return await classify_with(request, first, top_k)

    @router.post("/v1/models/{name}/explain", response_model=Explanation, responses=_POSTED, openapi_extra=_BODY)
    async def explain_with(request: Request, name: str, top_k: TopK = _TOP_K, label: Label = None) -> Response:
        """Classifies a picture with a model of this server, and shows where the prediction comes from."""
        model = find_model(models, name)
        async with bodies.read(request) as body:
            content, top_k = await read_inputs(request, body, top_k)
            return Json(await model.explain(content, top_k, label))

    @router.post("/v1/explain", response_model=Explanation, responses=_POSTED, openapi_extra=_BODY)
    async def explain(request: Request, top_k: TopK = _TOP_K, label: Label = None) -> Response:
        """Classifies a picture with the first model, and shows where the prediction comes from."""
        return await explain_with(request, first, top_k, label)

    return router


async def read_inputs(request: Request, body: bytes, top_k: int) -> tuple[bytes, int]:
    """Returns the bytes of the picture and the number of classes in a request.

    Any content type except JSON and multipart forms is read as a picture, because `curl --data-binary` declares a form.

    Raises:
        Refused: the body is a multipart form, or its JSON is not as described.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise Refused(415, "multipart forms are not supported; send the image itself: curl --data-binary @cat.jpg")
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
        raise Refused(422, "inputs must be the bytes of an image in base64; URLs are never fetched") from error
