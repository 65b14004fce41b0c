"""Responses in JSON, and `Refused`, which becomes an error response, `{"error": "..."}`."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response


class Json(Response):
    """A JSON response in ASCII, which is safe for any label."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Refused(Exception):
    """The refusal of a request, which is answered with an error.

    Attributes:
        status: the HTTP status.
        message: one line for the client; it never names a path of the server.
        headers: additional headers of the response.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}

    def make_response(self) -> Json:
        return Json({"error": self.message}, self.status, self.headers)


def refuse_full() -> Refused:
    """Returns the refusal of a request that the server has no capacity for."""
    return Refused(503, "the server is overloaded; try again in a second", {"Retry-After": "1"})


class Error(BaseModel):
    """Why a request was refused."""

    error: str


_REASONS = {
    400: "the request is malformed",
    401: "the API key is missing or wrong",
    403: "the request comes from a page of another origin",
    404: "there is no such model",
    408: "the body did not arrive in time",
    413: "the body or the picture is too large",
    415: "the body is a multipart form, or not an image of a supported format",
    422: "a value is not valid, or the image cannot be decoded",
    503: "the server is overloaded or stopping",
}


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of error responses for OpenAPI."""
    return {status: {"model": Error, "description": _REASONS[status]} for status in statuses}
