"""The routes of the page and of the data that it shows: models, their cards, sample pictures."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from shiftvit.bundle.bundle import read_card
from shiftvit.bundle.stored.find import PRETRAINED, find_bundle
from shiftvit.errors import ShiftViTError
from shiftvit.serve.answers import Json, Refused, describe_errors
from shiftvit.serve.limits import Limits
from shiftvit.serve.model import ServedModel, find_model

SAMPLES = PRETRAINED / "samples"
_PAGE = Path(__file__).parent / "page"
# Otherwise a browser could mix cached modules of an older page with new ones.
_CHECKED = {"Cache-Control": "no-cache"}
# On Windows the registry may declare them as plain text, which browsers do not run.
mimetypes.add_type("text/javascript", ".js")


class ModelInfo(BaseModel):
    """A model of this server."""

    name: str
    labels: list[str]
    input_shape: list[int | None] = Field(description="height, width, channels of the model's input; null: any")
    precision: str
    runtime: str
    explain: bool = Field(description="whether the model can explain its predictions")
    max_bytes: int = Field(description="the largest body that the server takes")


class PageFiles(StaticFiles):
    """The files of the page; browsers check each time whether their copy is current."""

    def __init__(self) -> None:
        super().__init__(directory=_PAGE)

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers.update(_CHECKED)
        return response


def make_router(models: dict[str, ServedModel], limits: Limits) -> APIRouter:
    """Returns the routes of the page and of its data."""
    router = APIRouter(tags=["about"])

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html", headers=_CHECKED)

    @router.get("/v1/models", response_model=list[ModelInfo], responses=describe_errors(400, 401))
    async def list_models() -> Response:
        """Lists the models; the first is the default."""
        return Json([{**await _describe(model), "max_bytes": limits.max_bytes} for model in models.values()])

    @router.get(
        "/v1/models/{name}/card",
        response_class=Response,
        responses={
            200: {"content": {"text/markdown": {"schema": {"type": "string"}}}},
            **describe_errors(400, 401, 404),
        },
    )
    def card(name: str) -> Response:
        """Returns a model's card in Markdown."""
        try:
            text = read_card(find_bundle(find_model(models, name).graph.model))
        except ShiftViTError:  # it is an export, or its files were deleted
            text = None
        if text is None:
            raise Refused(404, f"the model {name!r} has no model card")
        return Response(text.encode("utf-8", "replace"), media_type="text/markdown; charset=utf-8")

    @router.get("/v1/samples", response_model=list[str], responses=describe_errors(400, 401))
    async def samples() -> Response:
        """Lists the addresses of sample pictures."""
        return Json([f"/samples/{path.relative_to(SAMPLES).as_posix()}" for path in sorted(SAMPLES.glob("*/*.png"))])

    return router


async def _describe(model: ServedModel) -> dict[str, Any]:
    metadata = model.graph.metadata
    return {
        "name": model.name,
        "labels": list(model.labels),
        "input_shape": list(metadata.input_shape),
        "precision": metadata.precision,
        "runtime": model.graph.runtime,
        "explain": await model.load_explainer() is not None,
    }
