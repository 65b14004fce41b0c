"""Runs the server: listens, announces itself, and stops without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from shiftvit.errors import ShiftViTError, describe_error
from shiftvit.serve.answers import Json, Refused
from shiftvit.serve.app import create_app
from shiftvit.serve.guard import MAX_HEAD, Access, Guard
from shiftvit.serve.limits import Limits
from shiftvit.serve.measures import Measures
from shiftvit.serve.model import load_models
from shiftvit.threads import count_threads

# The last part of the time to stop: idle connections are closed, and requests can still be answered.
_LAST_SECONDS = 1


def serve(
    models: Sequence[str],
    host: str,
    port: int,
    *,
    limits: Limits,
    access: Access,
    runtime: str = "auto",
    threads: int | None = None,
    announce: Callable[[str, list[str]], None],
) -> int:
    """Loads models and serves them until a signal.

    Args:
        models: as for `load_models`.
        host: the address to listen at.
        port: the port; 0: a free one.
        limits: the limits of the server.
        access: who may use the server.
        runtime: as for `load_graph`.
        threads: CPU threads; None: one per core.
        announce: called with the address and the models' names when the server takes requests.

    Returns:
        the exit status: 0 after SIGTERM, 130 after Ctrl-C.

    Raises:
        ShiftViTError: the address cannot be used, or a model does not load.
    """
    measures = Measures()
    with (
        closing(listen(host, port)) as listener,
        ThreadPoolExecutor(count_threads(), thread_name_prefix="decode") as decoders,
    ):
        loaded = load_models(models, limits, decoders, measures, runtime, threads)
        guard = create_app(loaded, limits, access, measures)
        name, bound = listener.getsockname()[:2]
        announce(f"http://{f'[{name}]' if ':' in name else name}:{bound}", list(loaded))
        try:
            server = Server(guard)
            server.run(sockets=[listener])
            return 130 if server.signal == signal.SIGINT else 0
        finally:
            for model in loaded.values():
                model.batcher.stop()


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket.

    Raises:
        ShiftViTError: the address cannot be used.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except UnicodeError as error:  # from the encoding of the name
        raise ShiftViTError(
            f"--host {host!r} is not a host name: a part of it is empty, too long or not text; choose another one"
        ) from error
    except (OSError, OverflowError) as error:
        raise ShiftViTError(
            f"cannot listen at {host} port {port}: {describe_error(error)}; choose another --host or --port"
        ) from error


def _configure(guard: Guard) -> uvicorn.Config:
    """Returns uvicorn's settings: only HTTP/1.1 with h11, which limits the head of a request, and no log of its own."""
    return uvicorn.Config(
        guard,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=max(1, int(min(5, guard.limits.header_timeout))),
        timeout_graceful_shutdown=_LAST_SECONDS,  # `Server` has waited before
    )


class Server(uvicorn.Server):
    """Refuses new work after a signal, answers what waits, and only then closes."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(_configure(guard))
        self._guard = guard
        self._deadline = 0.0
        self.signal = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Unlike the original, it does not raise the signal again at the end: a clean stop is a success.
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal:  # the second time, at once
            self.should_exit = self.force_exit = True
            return
        self.signal = number
        self._guard.stopping = True
        self._deadline = time.monotonic() + self._guard.limits.timeout - _LAST_SECONDS

    async def on_tick(self, counter: int) -> bool:
        if self.signal and (self._guard.active == 0 or time.monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)


class _JoiningTransport:
    """A transport that joins all writes in one pass of the event loop, such as the head and body of a response."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))


class _Protocol(H11Protocol):
    """uvicorn's protocol with deadlines for slow clients, errors in JSON, and an end of abandoned requests."""

    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _task: asyncio.Task[Any] | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = cast(Guard, self.config.app).limits
        self._app, self.app = self.app, self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self._task = asyncio.current_task()
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if self.cycle.disconnected or self.cycle.response_started:
                return
            # The server ends at its deadline.
            refused = Refused(503, "the server is stopping; try again", {"Retry-After": "1", "Connection": "close"})
            await refused.make_response()(scope, receive, send)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(asyncio.Transport, _JoiningTransport(transport, self.loop)))
        # Otherwise the body of a response waits 40 ms until the client's kernel acknowledges its head. asyncio sets
        # this only for sockets that were created with the protocol's number.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "the server is overloaded; try again in a second", [("Retry-After", "1")])
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_busy() and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # After much data uvicorn stops reading, and would not notice that the client leaves. If another request
        # follows, it waits in the kernel.
        if self._is_busy() and not self.cycle.more_body and not self.conn.trailing_data[0]:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy():
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        # Nobody waits for the answer, so its images leave the queue.
        if self._is_busy() and self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self._limits.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        self._refuse(400, f"the request is not valid HTTP/1.1, or its headers have more than {MAX_HEAD:,} bytes")

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._limits.header_timeout, self._give_up)

    def _give_up(self) -> None:
        if self._is_busy():
            return
        if self.conn.trailing_data[0]:
            self._refuse(408, f"the request's headers did not arrive within {self._limits.header_timeout:g} seconds")
        if self.transport.get_write_buffer_size():  # the client does not read
            self.transport.abort()
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, headers: list[tuple[str, str]] | None = None) -> None:
        body = bytes(Json({"error": message}).body)
        fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        with contextlib.suppress(h11.LocalProtocolError):  # in the middle of an answer
            head = h11.Response(status_code=status, reason=STATUS_PHRASES[status], headers=fields + (headers or []))
            parts = (head, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        self.transport.close()
