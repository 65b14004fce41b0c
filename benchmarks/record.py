"""The JSON record of a benchmark: its command, the date, its figures and the environment."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from shiftvit import environment

RESULTS = Path(__file__).parent / "results"
# What the user chose; later shiftvit sets the variable itself.
_BACKEND = os.environ.get("KERAS_BACKEND")


# Not getrusage: a process inherits the peak of the one that started it.
_PROGRAM = """
import sys
from shiftvit.cli.main import _run
status = _run(sys.argv[1:])
print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
sys.exit(status)
"""


def write_record(
    name: str,
    figures: dict[str, Any],
    *,
    command: str | None = None,
    ran_on: dict[str, Any] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Writes FOLDER/NAME-DATE.json and returns its path.

    Args:
        name: the benchmark and what it measured.
        figures: the measured figures.
        command: the command to record; None: the command line, unless it names paths of this machine.
        ran_on: the environment to record; None: that of this process.
        folder: where to write.
    """
    date = datetime.date.today().isoformat()
    record = {"command": command or _command(), "date": date, **figures, "environment": ran_on or _environment()}
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{date}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print("wrote", path.name)
    return path


def run_command(arguments: list[str], allowed: tuple[int, ...] = (0,)) -> tuple[str, float]:
    """Runs a command of shiftvit in a process of its own.

    Args:
        arguments: of the command line.
        allowed: exit statuses that are no failure.

    Returns:
        what it printed on standard error, and its peak memory in megabytes.
    """
    answer = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True)
    if answer.returncode not in allowed:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{answer.stderr}")
    messages, _, peak = answer.stderr.rpartition("peak ")
    return messages, int(peak) / 1024


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
        "git_commit": environment.find_commit(),
    }
