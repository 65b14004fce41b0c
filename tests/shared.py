"""Makes files once per test run, in the first process that needs them."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

# The environment variable with the shared folder, which conftest.py makes and deletes.
VARIABLE = "SHIFTVIT_TESTS_SHARED"


def find_folder() -> Path:
    return Path(os.environ[VARIABLE])


def make_once(name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that `make` has filled. `make` is called once per test run; if it fails, every caller fails.

    Raises:
        AssertionError: `make` failed, here or in another process. The message has its traceback.
    """
    folder, failed = find_folder() / name, find_folder() / f"{name}.failed"
    with FileLock(find_folder() / f"{name}.lock"):
        if not folder.exists() and not failed.exists():
            unfinished = find_folder() / f"{name}.unfinished"
            unfinished.mkdir()
            try:
                make(unfinished)
            except Exception:
                failed.write_text(traceback.format_exc(), "utf-8")
                shutil.rmtree(unfinished)
            else:
                unfinished.rename(folder)
    assert not failed.exists(), f"{name} could not be made:\n{failed.read_text('utf-8')}"
    return folder
