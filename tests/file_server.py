"""A server of one file on this machine, which behaves like real servers or like broken ones."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FileServer:
    """The file that is served at every address but /moved/..., the behaviour of the server, and its requests."""

    content: bytes = b""
    url: str = ""
    status: int = 200
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True  # serves parts
    checks: bool = True  # heeds If-Range
    told: bool = True  # states the length
    encoding: str | None = None
    kind: str = "application/octet-stream"
    stop_after: int | None = None  # bytes of an answer, after which the connection ends
    redirect: str | None = None  # for addresses that begin with /moved/
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, and the Range that was asked for
    sent: threading.Event = field(default_factory=threading.Event)  # an answer ended early
    hold: threading.Event = field(default_factory=threading.Event)  # cleared: it keeps the connection open then


class _Handler(http.server.BaseHTTPRequestHandler):
    server_state: FileServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        asked = self.headers.get("Range")
        state.requests.append((self.path, asked))
        if state.redirect is not None and self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", state.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, status = state.content, state.status
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        current = state.etag or state.modified
        if status == 200 and found and state.ranges and (not state.checks or self.headers.get("If-Range") == current):
            start = int(found[1])
            if start >= len(body):
                status, body = 416, b""
            else:
                status, body = 206, body[start:]
        self.send_response(status)
        self.send_header("Content-Type", state.kind)
        if state.told:
            self.send_header("Content-Length", str(len(body)))
        if state.encoding:
            self.send_header("Content-Encoding", state.encoding)
        if state.etag:
            self.send_header("ETag", state.etag)
        if state.modified:
            self.send_header("Last-Modified", state.modified)
        if status == 206:
            total = len(state.content)
            self.send_header("Content-Range", f"bytes {total - len(body)}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(body if state.stop_after is None else body[: state.stop_after])
        self.wfile.flush()
        if state.stop_after is not None:
            state.sent.set()
            state.hold.wait(20)
        self.close_connection = True


@contextmanager
def listen(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on this machine that answers with a handler; yields its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


@contextmanager
def serve_file(content: bytes = b"") -> Iterator[FileServer]:
    """A running server."""
    state = FileServer(content)
    state.hold.set()
    with listen(type("Bound", (_Handler,), {"server_state": state})) as state.url:
        try:
            yield state
        finally:
            state.hold.set()
