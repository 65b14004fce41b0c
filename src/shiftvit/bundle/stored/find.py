"""Finds a bundle by a path, or by the name of a model that was pulled or comes with the package."""

from __future__ import annotations

import os
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.bundle.stored.container import Container, open_container
from shiftvit.bundle.stored.manifest import MANIFEST, read_manifest, read_tensors
from shiftvit.bundle.stored.published import PUBLISHED
from shiftvit.errors import ShiftViTError, check_path, notice
from shiftvit.presets import PRESETS

# The report in the folder of an export.
REPORT = "report.json"
# The trained models that come with the package, one folder each.
PRETRAINED = Path(__file__).parents[2] / "pretrained"

# Suffixes of the authors' checkpoints, which hold only weights.
_CHECKPOINTS = {".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors", ".npz"}


def list_pretrained() -> list[str]:
    """Returns the names of the models that come with the package."""
    return sorted(entry.parent.name for entry in PRETRAINED.glob(f"*/{MANIFEST}"))


def find_bundle(path: str | Path) -> Container:
    """Returns the files of the bundle at `path`, in its subfolder `bundle`, or of the model of that name.

    A bundle, or a run folder with one, in the working folder wins over a model of the same name; then a notice is
    printed.

    Raises:
        ShiftViTError: there is none.
    """
    check_path("model", path)
    given, path = str(path), Path(path)
    named = _find_named(given)
    if (here := _find_here(path)) is not None:
        notice_same_name(given)
        return here
    if named is not None:
        return named
    if (path / "recipe.toml").is_file():
        raise ShiftViTError(
            f"the run {given!r} has no model yet; let it finish: shiftvit train --resume {shlex.quote(given)}"
        )
    if given in PRESETS:
        raise _explain_not_pulled(given)
    if is_checkpoint(path) and path.is_file():
        raise ShiftViTError(
            f"{given!r} holds weights but is not a bundle; make one: shiftvit pack {shlex.quote(given)} DIR"
        )
    if (path / REPORT).is_file():
        raise ShiftViTError(
            f"{given!r} is an export, which can only predict; give the run or the bundle that it was made from"
        )
    there = "is not a bundle and contains none" if path.exists() else "does not exist"
    far = f"; if it is on the Hugging Face Hub: shiftvit pull {given}" if _is_far(given) else ""
    raise ShiftViTError(
        f"{given!r} {there}; give a run folder, a bundle (a folder or .zip with {MANIFEST}) or one of the names: "
        f"{', '.join([*PUBLISHED, *list_pretrained()])}{far}"
    )


def read_published(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the published weights of a preset, variable path to array.

    Raises:
        ShiftViTError: they were not pulled yet, do not exist or are damaged.
    """
    container = _find_named(name) if name in PUBLISHED else None
    if container is None:
        raise _explain_not_pulled(name)
    return read_tensors(container, read_manifest(container))


def notice_same_name(given: str) -> None:
    """Prints a notice, once, if the path of a model is also the name of another one."""
    if (named := _find_named(given)) is not None:
        _notice_once(given, str(named.where))


@cache
def _notice_once(given: str, place: str) -> None:
    notice(f"using {given!r} in the working folder; the model of that name is {place!r}")


def is_name(given: str) -> bool:
    """Returns whether `find_bundle` finds a model by this name, not by a path."""
    return _find_named(given) is not None and _find_here(Path(given)) is None


def choose_name(path: str | Path) -> str:
    """Returns a short name for the model at a path: that of its folder or file; of a run's folder `bundle`, the run's.

    Args:
        path: a path, or the name of a model.
    """
    place = Path(os.path.abspath(path))  # noqa: PTH100  (the name of a link, not of what it leads to)
    name = place.parent.name if place.name == "bundle" else place.name.removesuffix(".zip")
    return name or "model"


def is_checkpoint(path: str | Path) -> bool:
    """Returns whether a path has the suffix of a checkpoint and is not a folder."""
    return Path(path).suffix.lower() in _CHECKPOINTS and not Path(path).is_dir()


def is_model(given: str | Path) -> bool:
    """Returns whether `find_bundle` finds a model by this name or path."""
    return _find_here(Path(given)) is not None or _find_named(str(given)) is not None


def _find_here(path: Path) -> Container | None:
    for place in (path, path / "bundle"):
        if place is not path and place.is_symlink():
            raise ShiftViTError(f"{str(place)!r} is a link, which is not followed; give the path that it leads to")
        if (container := open_container(place, MANIFEST)) is not None:
            return container
    return None


def _find_named(given: str) -> Container | None:
    if given in PUBLISHED:
        return open_container(PUBLISHED[given].place, MANIFEST)
    return open_container(PRETRAINED / given, MANIFEST) if given in list_pretrained() else None


def _explain_not_pulled(name: str) -> ShiftViTError:
    if name in PUBLISHED:
        return ShiftViTError(f"the weights of {name!r} are not on this machine yet; run: shiftvit pull {name}")
    return ShiftViTError(
        f"{name!r} is an architecture without published weights; train it, or use one of: {', '.join(PUBLISHED)}"
    )


def _is_far(name: str) -> bool:
    """Returns whether a name can be a repository, OWNER/NAME, and is probably not a misspelt path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).parent.exists()
