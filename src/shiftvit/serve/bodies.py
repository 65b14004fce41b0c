"""Reads the bodies of requests, with limits on their size and time, and parses JSON strictly."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import ijson
from starlette.requests import Request

from shiftvit.serve.answers import Refused, refuse_full
from shiftvit.serve.limits import Limits

# The deepest nesting in JSON; a batch of pictures as nested lists has four levels.
_DEEPEST = 16
# The server reads and drops a body that is too large, up to this many times the limit.
_READ_AND_DROPPED = 4
# Bodies above this size are parsed in two threads only: a parsed body takes up to 30 times its size. Not a semaphore,
# because a thread goes on when its client leaves.
_SMALL = 2**18
_PARSERS = ThreadPoolExecutor(2, thread_name_prefix="json")
# More objects than any valid request has.
_MOST_OBJECTS = 1000
_CONTAINERS: dict[str, type] = {"start_map": dict, "start_array": list}


class Bodies:
    """Reads bodies within the limits, which also apply to the sum of all bodies in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yields a request's body, which counts towards the sum within the `async with` block.

        Raises:
            Refused: the body is empty, too large or too slow, or too many bodies are in memory.
        """
        content = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.timeout):
                    await self._receive(request, content)
            except TimeoutError as error:
                message = f"the body did not arrive within {self._limits.timeout:g} seconds; send it faster"
                raise Refused(408, message, {"Connection": "close"}) from error
            if not content:
                raise Refused(400, "the body is empty; send the bytes of an image, or JSON")
            yield bytes(content)
        finally:
            self._held -= len(content)

    async def _receive(self, request: Request, content: bytearray) -> None:
        limit = self._limits.max_bytes
        too_large = Refused(
            413, f"the body has more than {limit:,} bytes; send a smaller picture", {"Connection": "close"}
        )
        # 18 digits are enough for any limit.
        declared = int(text[:18]) if (text := request.headers.get("content-length", "")).isdecimal() else 0
        # A client that waits for status 100, or whose body is far too large, gets the error at once. Other clients send
        # everything before they read the response, and lose it if the connection closes first. So the server reads and
        # drops their body.
        if declared > limit and (declared > _READ_AND_DROPPED * limit or "expect" in request.headers):
            raise too_large
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > _READ_AND_DROPPED * limit:
                break
            if max(received, declared) > limit:
                continue
            if self._held + len(chunk) > self._limits.max_buffered:
                raise refuse_full()
            content += chunk
            self._held += len(chunk)
        if received > limit:
            raise too_large


async def parse_json(content: bytes) -> dict[str, Any]:
    """Returns the object in a JSON body. Parses it in another thread, so that the event loop is not blocked.

    Raises:
        Refused: it is not a valid JSON object, repeats a key, nests too deeply, has too many objects, or holds NaN or a
            number beyond 64 bits.
    """
    threads = None if len(content) <= _SMALL else _PARSERS
    return await asyncio.get_running_loop().run_in_executor(threads, _parse, content)


def _parse(content: bytes) -> dict[str, Any]:
    stack: list[Any] = [[]]
    keys: list[str] = []
    objects = 0
    try:
        # One event at a time, because `json.loads` would hold the interpreter lock until the whole body is parsed.
        for event, value in ijson.basic_parse(io.BytesIO(content), use_float=True):
            if event in _CONTAINERS:
                if len(stack) > _DEEPEST:
                    raise Refused(400, f"the JSON nests more than {_DEEPEST} levels deep; nest it less")
                objects += event == "start_map"
                if objects > _MOST_OBJECTS:
                    raise Refused(400, f"the JSON has more than {_MOST_OBJECTS:,} objects; send fewer")
                fresh: Any = _CONTAINERS[event]()
                _add(stack[-1], keys, fresh)
                stack.append(fresh)
            elif event == "map_key":
                if value in stack[-1]:
                    raise Refused(400, f"the JSON repeats the key {value[:40]!r}; send each key once")
                keys.append(value)
            elif event in {"end_map", "end_array"}:
                stack.pop()
            else:
                _add(stack[-1], keys, value)
    except (ijson.JSONError, ValueError, OverflowError) as error:
        raise Refused(400, f"the body is not valid JSON: {_shorten_reason(error)}") from error
    (tree,) = stack[0]
    if not isinstance(tree, dict):
        raise Refused(400, f"the JSON is a {type(tree).__name__}; send an object")
    return tree


def _add(place: Any, keys: list[str], value: Any) -> None:
    if isinstance(place, dict):
        place[keys.pop()] = value
    else:
        place.append(value)


def _shorten_reason(error: Exception) -> str:
    """Returns the first line of a parser's message, without its quotation of the body."""
    text = str(error).removeprefix("b'").replace("\\n", "\n")
    return text.partition("\n")[0].strip()[:100] or type(error).__name__
