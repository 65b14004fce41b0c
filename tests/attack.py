"""An object whose pickle runs code, which shows whether a reader unpickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Attack:
    """Writes "executed" to the file `target` when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "executed")
