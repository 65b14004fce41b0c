"""`create_app`: the server as an ASGI application."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from shiftvit.serve import about, classify, protocol
from shiftvit.serve.answers import Json, Refused
from shiftvit.serve.bodies import Bodies
from shiftvit.serve.guard import Access, Guard
from shiftvit.serve.limits import Limits
from shiftvit.serve.measures import Measures
from shiftvit.serve.model import ServedModel


def create_app(
    models: dict[str, ServedModel],
    limits: Limits,
    access: Access,
    measures: Measures,
) -> Guard:
    """Returns the server as an ASGI application.

    Args:
        models: name to model; the first is the default.
        limits: limits on what clients may send.
        access: who may use the server.
        measures: the figures of `/metrics`.
    """
    from shiftvit import __version__

    bodies = Bodies(limits)
    # FastAPI's own documentation page would load scripts from another host.
    app = FastAPI(
        title="shiftvit",
        version=__version__,
        summary="Classifies images.",
        docs_url=None,
        redoc_url=None,
    )
    guard = Guard(app, access, limits, measures)
    # `include_router` would make every request look for its route twice.
    app.routes.extend(classify.make_router(models, bodies).routes)
    app.routes.extend(about.make_router(models, limits).routes)
    app.routes.extend(protocol.make_router(models, bodies, __version__, lambda: not guard.stopping).routes)
    _add_errors(app)
    _name_models(app, list(models))
    app.mount("/page", about.PageFiles())
    app.mount("/samples", StaticFiles(directory=about.SAMPLES))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(measures.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return guard


def _name_models(app: FastAPI, names: list[str]) -> None:
    """Lists the models' names in the OpenAPI description, which FastAPI caches."""
    for path in app.openapi()["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"]["enum"] = names


def _add_errors(app: FastAPI) -> None:
    """Gives every error the same form, {"error": "..."}."""

    @app.exception_handler(Refused)
    async def answer_refused(_: Request, error: Refused) -> Response:
        return error.make_response()

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return Json({"error": f"{place}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase.lower()
        return Json({"error": f"{request.method}: {phrase}"}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def answer_nobody(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)

    @app.exception_handler(Exception)
    async def answer_failure(_: Request, __: Exception) -> Response:
        return Json({"error": "the server failed; its log has the reason"}, 500)
