"""Makes things once in a run of the tests, in the first of its processes that asks."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

# The environment variable with a folder that exists as long as the run of the tests; set when the run begins.
VARIABLE = "SHIFTVIT_TESTS_SHARED"


def find_folder() -> Path:
    return Path(os.environ[VARIABLE])


def make_once(name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that `make` has filled. Calls it once in a run; if that fails, it fails for all.

    Raises:
        AssertionError: making it failed, here or in another process; the message has the first one's traceback.
    """
    place, failed = find_folder() / name, find_folder() / f"{name}.failed"
    with FileLock(find_folder() / f"{name}.lock"):
        if not place.exists() and not failed.exists():
            unfinished = find_folder() / f"{name}.unfinished"
            unfinished.mkdir()
            try:
                make(unfinished)
            except Exception:
                failed.write_text(traceback.format_exc(), "utf-8")
                shutil.rmtree(unfinished)
            else:
                unfinished.rename(place)
    assert not failed.exists(), f"{name} could not be made:\n{failed.read_text('utf-8')}"
    return place
