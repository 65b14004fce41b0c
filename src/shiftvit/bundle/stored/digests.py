"""The SHA-256 of each file of an export, which its report records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shiftvit.bundle.stored.find import REPORT
from shiftvit.errors import ShiftViTError
from shiftvit.files import hash_file

# The entry of the report.
DIGESTS = "sha256"
# Bytes. Reading a larger file twice makes `shiftvit predict` start noticeably later: 10% with 189 MB.
LARGEST = 2**26


def hash_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file in a folder, by its path there."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


def check_artifact(artifact: Path) -> None:
    """Checks an artifact, a file or a folder, against the report beside it, if there is one that records digests.

    It skips large files, because every program that loads a model would wait for them.

    Raises:
        ShiftViTError: a file has changed.
    """
    # OpenVINO keeps the weights beside the graph.
    paths = artifact.rglob("*") if artifact.is_dir() else (artifact, artifact.with_suffix(".bin"))
    _check(artifact.parent, [path for path in paths if path.is_file() and path.stat().st_size <= LARGEST])


def check_export(folder: Path) -> int:
    """Checks all files of an export against its report, and returns how many digests that records.

    Raises:
        ShiftViTError: a file is missing or has changed.
    """
    recorded = _read_digests(folder)
    for name in sorted(recorded):
        if not (folder / name).is_file():
            raise ShiftViTError(f"{str(folder / name)!r} is missing; restore it, or export it again")
    _check(folder, [path for path in sorted(folder.rglob("*")) if path.is_file()])
    return len(recorded)


def read_report(folder: Path) -> dict[str, Any]:
    """Returns the report of an export; empty if it is missing or damaged."""
    try:
        report = json.loads((folder / REPORT).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def _read_digests(folder: Path) -> dict[str, str]:
    """Returns the recorded digests; none for an export of an older version, or without its report."""
    recorded = read_report(folder).get(DIGESTS)
    return {str(name): str(digest) for name, digest in recorded.items()} if isinstance(recorded, dict) else {}


def _check(folder: Path, paths: Iterable[Path]) -> None:
    recorded = _read_digests(folder)
    for path in paths:
        digest = recorded.get(path.relative_to(folder).as_posix())
        if digest is not None and hash_file(path) != digest:
            raise ShiftViTError(
                f"{str(path)!r} is damaged: its SHA-256 differs from the one in {REPORT!r}; restore it, or export it "
                "again"
            )
