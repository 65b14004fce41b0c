"""The record that a benchmark leaves: its command, the date, its figures and what it ran on, as JSON."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from shiftvit import environment

RESULTS = Path(__file__).parent / "results"
# The user's choice: shiftvit sets the variable too, once it has chosen.
_BACKEND = os.environ.get("KERAS_BACKEND")


def write_record(
    name: str,
    figures: dict[str, Any],
    *,
    command: str | None = None,
    ran_on: dict[str, Any] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Writes FOLDER/NAME-DATE.json, says so and returns its path.

    Args:
        name: of the benchmark and what was measured.
        figures: what was measured.
        command: what was run, where the command line itself names places of this machine.
        ran_on: the environment, where that is not this process's.
        folder: where the record goes.
    """
    date = datetime.date.today().isoformat()
    record = {"command": command or _command(), "date": date, **figures, "environment": ran_on or _environment()}
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{date}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print("wrote", path.name)
    return path


def _command() -> str:
    backend = [f"KERAS_BACKEND={_BACKEND}"] if _BACKEND else []
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return " ".join([*backend, "python", script, *map(shlex.quote, sys.argv[1:])])


def _environment() -> dict[str, Any]:
    if "keras" in sys.modules:
        found = environment.describe_environment()
        del found["command"]
        return found
    return {
        "versions": environment.list_versions(),
        "processor": environment.find_processor_name(),
        "instructions": environment.list_instructions(),
        "cores": environment.count_cores(),
    }
