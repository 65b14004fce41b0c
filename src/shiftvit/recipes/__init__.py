"""The shipped recipes, one TOML file each. Its head comment has the command, hardware, time and accuracy."""

from __future__ import annotations

from importlib import resources
from itertools import takewhile
from pathlib import Path

from shiftvit.errors import ShiftViTError, check_path, describe_error, suggest


def list_names() -> list[str]:
    """Returns the names of the shipped recipes."""
    return sorted(
        Path(entry.name).stem for entry in resources.files(__name__).iterdir() if entry.name.endswith(".toml")
    )


def read_head(name: str) -> str:
    """Returns the head comment of a shipped recipe."""
    head = takewhile(lambda line: line.startswith("#"), read_text(name)[0].splitlines())
    return "\n".join(line.lstrip("#").strip() for line in head)


def read_text(source: str | Path) -> tuple[str, str]:
    """Returns a recipe's text and its name in messages.

    Args:
        source: the name of a shipped recipe, or the path of a `.toml` file.

    Raises:
        ShiftViTError: no such recipe, or a file that cannot be read as UTF-8 text.
    """
    check_path("recipe", source)
    if str(source) in list_names():
        return (resources.files(__name__) / f"{source}.toml").read_text("utf-8"), f"recipe {source}"
    path = Path(source)
    if path.suffix.lower() == ".toml":
        try:
            return path.read_text("utf-8-sig"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = describe_error(error) if isinstance(error, OSError) else "not UTF-8 text"
            raise ShiftViTError(f"cannot read the recipe {str(path)!r}: {reason}; give a readable one") from error
    raise ShiftViTError(
        f"there is no recipe {str(source)!r}; {suggest(str(source), list_names())} Or give the path of a .toml file."
    )
