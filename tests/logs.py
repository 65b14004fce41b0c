"""Reads the log of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_log(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run folder's `log.jsonl`."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
