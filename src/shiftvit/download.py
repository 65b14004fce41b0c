"""Downloads a file over HTTP. After an error, a later call continues the download.

`pooch` would add `requests` as a dependency, cannot limit the size, and cannot continue a download.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from shiftvit.console import Bar
from shiftvit.errors import ShiftViTError, describe_error, notice, to_one_line

_CHUNK = 2**20
# Attempts in a row without a new byte before it gives up, and the pause between attempts in seconds.
_ATTEMPTS, _PAUSE = 3, 1.0
# Errors of the network, not of the disk.
_FAULTS = (OSError, http.client.HTTPException)


def download(url: str, target: Path, *, limit: int, timeout: float = 20.0) -> None:
    """Downloads `url` into the file `target`.

    If this raises, the part that arrived stays in `target`. A later call continues it if the server's file has not
    changed (by ETag or Last-Modified, which are kept in a file beside the part), or else starts over.

    Args:
        url: the address.
        target: the file to write.
        limit: the largest size in bytes, so that a server cannot fill the disk.
        timeout: seconds without a response after which an attempt fails.

    Raises:
        ShiftViTError: the server cannot be reached, refuses, stops responding, or sends a web page, too little or too
            much.
        OSError: `target` cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise ShiftViTError(
            f"{to_one_line(url)!r} is not the address of a server; it must begin with https:// or http://"
        )
    best, fruitless, quiet = _get_size(target), 0, False
    while True:
        try:
            _attempt(url, target, limit, timeout, quiet)
            break
        except Broken as error:
            fruitless = 0 if _get_size(target) > best else fruitless + 1
            best = max(best, _get_size(target))
            # It does not try again without a validator, because it might start over for ever.
            if not error.again or fruitless == _ATTEMPTS or not _read_validator(target, url):
                raise ShiftViTError(str(error)) from error
        quiet = True
        time.sleep(_PAUSE)
    _get_record(target).unlink(missing_ok=True)


class Broken(Exception):
    """A failed attempt. `again`: another one may succeed."""

    def __init__(self, text: str, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https://"):
            raise Broken(f"the server points to {to_one_line(newurl)[:200]}, which is not https, so it is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(url: str, target: Path, limit: int, timeout: float, quiet: bool) -> None:
    validator = _read_validator(target, url) or ""
    # It requests the last byte again, because a range after the end of a complete file would be an error.
    start = max(0, _get_size(target) - 1) if validator else 0
    with _open(url, {"Range": f"bytes={start}-", "If-Range": validator} if start else {}, target, timeout) as response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Broken("the server sends the file with a content encoding")
        if start and not _is_continued(response, start, validator):
            if response.status == 206:
                _get_record(target).unlink(missing_ok=True)
                raise Broken("the server's file has changed while it was downloaded; try again")
            start = 0
        size = start + response.length if response.length is not None else 0
        if size > limit:
            raise Broken(f"the server's file has {size} bytes, but at most {limit} are allowed")
        if not quiet:
            notice(f"{'continuing' if start else 'downloading'} {url}{f' ({size / 1e6:.0f} MB)' if size else ''}")
        with target.open("r+b" if start else "wb") as file, Bar("downloading", size, done=start, size=True) as bar:
            if not start:  # what a later attempt needs to continue
                record = {"url": url, "validator": _get_validator(response)}
                _get_record(target).write_text(json.dumps(record), "utf-8")
            received = start
            file.seek(start)
            file.truncate()
            while True:
                try:
                    chunk = response.read1(_CHUNK)
                except _FAULTS as error:
                    raise Broken(f"after {received} bytes: {_explain(error, timeout)}", again=True) from error
                if not chunk:
                    break
                if received == 0 and chunk.lstrip()[:1] == b"<":
                    raise Broken("the server sent a web page instead of the file")
                file.write(chunk)
                received += len(chunk)
                bar.advance(len(chunk))
                if received > limit:
                    raise Broken(f"the server sent more than {limit} bytes")
    if size and received != size:
        raise Broken(f"the connection ended after {received} of {size} bytes", again=True)


def _open(url: str, headers: dict[str, Any], target: Path, timeout: float) -> Any:
    """Returns the server's response."""
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.build_opener(Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (412, 416):  # there is no such part
            _get_record(target).unlink(missing_ok=True)
        again = error.code == 429 or error.code >= 500
        raise Broken(f"the server responded {error.code} {to_one_line(str(error.reason))[:100]}", again) from error
    except (*_FAULTS, ValueError) as error:
        raise Broken(_explain(error, timeout), again=True) from error


def _is_continued(response: Any, start: int, validator: str) -> bool:
    """Returns whether a response is the rest of the same file, from `start` on."""
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    same = _get_validator(response) in ("", validator)
    return bool(
        response.status == 206
        and same
        and place
        and int(place[1]) == start
        and response.length in (None, int(place[2]) - start)
    )


def _get_validator(response: Any) -> str:
    """Returns the ETag or date that identifies a version of the file. A weak ETag does not identify its bytes."""
    tag = response.headers.get("ETag", "")
    return str(tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", ""))


def _get_record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _read_validator(target: Path, url: str) -> str | None:
    """Returns the validator of the part in `target`; None: the part cannot be continued."""
    try:
        kept = json.loads(_get_record(target).read_text("utf-8"))
        validator = kept["validator"] if kept["url"] == url else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return validator if isinstance(validator, str) and validator.isprintable() and validator else None


def _get_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _explain(error: BaseException, timeout: float) -> str:
    """Describes an error of the network in a few words."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"no response for {timeout:g} s"
    return describe_error(inner)
