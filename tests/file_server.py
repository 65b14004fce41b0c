"""A local server of one file. It can behave like real servers and like broken ones."""

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
    """The file, how the server behaves, and the requests it received. Every address but /moved/... returns the file."""

    content: bytes = b""
    url: str = ""
    status: int = 200
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True  # answers requests for a range
    checks: bool = True  # honours If-Range
    told: bool = True  # sends Content-Length
    encoding: str | None = None
    kind: str = "application/octet-stream"
    stop_after: int | None = None  # closes the connection after this many bytes of the body
    redirect: str | None = None  # where addresses that begin with /moved/ redirect to
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header
    sent: threading.Event = field(default_factory=threading.Event)  # set once an answer has stopped early
    hold: threading.Event = field(default_factory=threading.Event)  # if cleared, the connection stays open after that


class _Handler(http.server.BaseHTTPRequestHandler):
    server_state: FileServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        requested_range = self.headers.get("Range")
        state.requests.append((self.path, requested_range))
        if state.redirect is not None and self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", state.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, status = state.content, state.status
        match = re.fullmatch(r"bytes=(\d+)-", requested_range or "")
        current = state.etag or state.modified
        if status == 200 and match and state.ranges and (not state.checks or self.headers.get("If-Range") == current):
            start = int(match[1])
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
    """Runs a local server with this handler; yields its address."""
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
    """Runs the server; yields its state, which tests change and read."""
    state = FileServer(content)
    state.hold.set()
    with listen(type("Bound", (_Handler,), {"server_state": state})) as state.url:
        try:
            yield state
        finally:
            state.hold.set()
