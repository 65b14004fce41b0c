"""`Guard`: the outermost layer of the server. It checks access, and logs and counts requests."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shiftvit.serve.answers import Refused, refuse_full
from shiftvit.serve.limits import Limits
from shiftvit.serve.measures import Measures

log = logging.getLogger("shiftvit.serve")

# The most bytes of a request's headers.
MAX_HEAD = 16 * 2**10
# What needs a key even to be read, and the probes, which need none. Nor does the page, which asks the user for it.
_KEYED, _OPEN = ("/v1/", "/v2", "/metrics", "/openapi.json"), "/v2/health/"
_SECURITY = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}
# The default port of each scheme of a web origin, which browsers leave out.
_PORTS = {"http": 80, "https": 443}
# The answer to a browser's preflight request; `_share` adds the allowed origin.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Inference-Header-Content-Length, X-API-Key",
    "Access-Control-Max-Age": "600",
}


@dataclass
class Access:
    """Who may use the server.

    Attributes:
        keys: API keys; empty: everyone may use it.
        origins: web origins whose pages may use it, such as "https://example.org"; "*": all.
        hosts: names for the Host header, in addition to localhost, this machine's name and IP addresses.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    own_names: frozenset[str] = field(default_factory=lambda: frozenset({"localhost", socket.gethostname().lower()}))

    def allows_key(self, headers: Mapping[str, str]) -> bool:
        """Returns whether the request has a valid key; compares in constant time."""
        if not self.keys:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        content = given.encode("latin-1", "replace")
        # Compares with all keys, even after a match.
        return sum(hmac.compare_digest(content, key.encode()) for key in self.keys) > 0

    def allows_host(self, host: str) -> bool:
        """Returns whether a Host header is allowed. Unknown names are not, because DNS rebinding could forge them."""
        name = _parse_host_name(host)
        return name is not None and (name in self.own_names or name in self.hosts or _is_address(name))

    def allows_origin(self, origin: str | None, host: str, scheme: str) -> bool:
        """Returns whether the page that sends a request may use the server; only browsers send an origin."""
        if origin is None or origin in self.origins or "*" in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # it is malformed
            return False
        return parts.scheme in {scheme, "https"} and parts.netloc.lower() == host.lower()


class Guard:
    """Checks a request's host, origin and key, adds the security headers, and logs and counts it.

    Attributes:
        limits: the limits of the server.
        active: requests without an answer.
        stopping: whether new work is refused.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, measures: Measures) -> None:
        self._app, self._access, self.limits, self._measures = app, access, limits, measures
        self.active = 0
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 499  # unless there is an answer: the client left before
        # If a header is repeated, the first one counts.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        origin = headers.get("origin")
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY.items()]
                if self._access.origins:
                    self._share(MutableHeaders(scope=message), origin)
            await send(message)

        self.active += 1
        try:
            refusal = self._find_refusal(scope, headers, preflight)
            if refusal is not None:
                await refusal.make_response()(scope, receive, send_guarded)
            elif preflight:
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send_guarded)
            else:
                await self._app(scope, receive, send_guarded)
        finally:
            self.active -= 1
            self._report(scope, status, time.perf_counter() - began)

    def _find_refusal(self, scope: Scope, headers: Mapping[str, str], preflight: bool) -> Refused | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD:
            return Refused(400, f"the request's headers have more than {MAX_HEAD:,} bytes", {"Connection": "close"})
        if "content-length" in headers and "transfer-encoding" in headers:  # two readers could disagree on its end
            return Refused(400, "give Content-Length or Transfer-Encoding, not both", {"Connection": "close"})
        host = headers.get("host", "")
        if [name for name, _ in scope["headers"]].count(b"host") != 1 or not self._access.allows_host(host):
            return Refused(400, "the name in the Host header is not allowed; start the server with --allow-host NAME")
        asks = scope["method"] not in {"GET", "HEAD"}
        if asks and not self._access.allows_origin(headers.get("origin"), host, scope["scheme"]):
            return Refused(403, "pages of other origins may not use this server; start it with --allow-origin ORIGIN")
        keyed = asks or (scope["path"].startswith(_KEYED) and not scope["path"].startswith(_OPEN))
        if keyed and not preflight and not self._access.allows_key(headers):
            return Refused(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        if asks and self.stopping:
            return Refused(503, "the server is stopping; try again", {"Retry-After": "1", "Connection": "close"})
        if asks and self.active > self.limits.max_connections:
            return refuse_full()
        return None

    def _share(self, headers: MutableHeaders, origin: str | None) -> None:
        """Lets pages of the allowed origins read the response."""
        origins = self._access.origins
        headers.add_vary_header("Origin")
        if origin is not None and (origin in origins or "*" in origins):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in {"GET", "HEAD", "POST", "OPTIONS"} else "other"
        self._measures.count_request(route, method, status, seconds)
        client = scope["client"][0] if scope.get("client") else "-"
        # The path comes from the client, so it is quoted: a request must not be able to forge a line.
        path = scope.get("raw_path", b"").decode("ascii", "replace")[:200]
        entry = {
            "client": client,
            "method": method,
            "path": path,
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
        }
        words = (client, method, json.dumps(path), status, seconds * 1000)
        log.info("%s %s %s %d %.1f ms", *words, extra={"request": entry})  # which `JsonFormatter` writes


def _parse_host_name(host: str) -> str | None:
    """Returns the name in a Host header, without its port; None if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  (raises on what is no port)
    except ValueError:
        return None
    plain = parts.path or parts.query or parts.fragment or parts.username is not None
    return None if plain or not parts.hostname else parts.hostname.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches a server that listens at `host`."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def parse_origins(origins: Iterable[str]) -> tuple[str, ...]:
    """Returns web origins as browsers write them: in small letters, and without the default port of their scheme.

    Raises:
        ValueError: one of them is not an origin; its text is the message.
    """
    return tuple(origin if origin == "*" else _parse_origin(origin) for origin in origins)


def _parse_origin(origin: str) -> str:
    try:
        parts = urlsplit(origin)
        name, port = _parse_host_name(parts.netloc), parts.port
    except ValueError:
        raise ValueError(origin) from None
    if name is None or parts.scheme not in _PORTS or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(origin)
    host = f"[{parts.hostname}]" if ":" in name else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")


def parse_hosts(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of hosts as `Access.hosts` has them: in small letters, and without a port.

    Raises:
        ValueError: one of them is not the name of a host; its text is the message.
    """
    found = []
    for name in names:
        host = name if _is_address(name) else _parse_host_name(name)
        if host is None:
            raise ValueError(name)
        found.append(host)
    return tuple(found)
