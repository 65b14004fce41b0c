"""Stops a write before each of its steps, and prints what is left: `kill_steps.py WHAT HOW FOLDER OTHERS`.

WHAT is "folder" or "bundle", HOW is "kill" or "interrupt". With "others" as OTHERS the folder also has files that the
write does not own. A step is a Python audit event that changes files. The program prints one line of JSON for each
step: what a reader gets and which files exist after the stop, and the same after the write was repeated. It is a
program of its own because it forks.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shiftvit.bundle.bundle import Bundle
from shiftvit.config import ModelConfig
from shiftvit.preprocess import Preprocess
from shiftvit.replacement import find_current, write_folder

CHANGING_EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "ctypes.dlsym",
    "tempfile.mkdtemp",
}
OWNED_NAMES = ("a.txt", "b.txt", "deep", "old.txt")


def read_files(folder: Path) -> dict[str, str]:
    """Returns the last bytes of each file in hexadecimal, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes().hex()[-8:] for path in paths}


def write_text(place: Path, text: str) -> None:
    def write(new: Path) -> None:
        for name in ("a.txt", "b.txt") if text == "new" else ("a.txt", "b.txt", "old.txt"):
            (new / name).write_text(text)
        (new / "deep").mkdir()
        (new / "deep" / "c.txt").write_text(text)

    write_folder(place, write, OWNED_NAMES)


def read_text(place: Path) -> Any:
    names = ("a.txt", "b.txt", "deep", "old.txt")
    found = [find_current(place / name) for name in names]
    texts = {(path / "c.txt" if path.is_dir() else path).read_text() for path in found[:3]}
    return sorted(texts)


def write_bundle(place: Path, text: str) -> None:
    config = ModelConfig(image_shape=(16, 16, 3), num_classes=2, embed_dim=24, depths=(1,))
    graph = b"a graph" if text == "old" else None
    Bundle(config, (text, "b"), Preprocess(), {}, card=text, graph=graph).save(place)


def read_bundle(place: Path) -> Any:
    found = Bundle.load(place)
    return sorted({found.labels[0], str(found.card), "old" if found.graph else "new"})


WRITES: dict[str, tuple[Callable[[Path, str], None], Callable[[Path], Any]]] = {
    "folder": (write_text, read_text),
    "bundle": (write_bundle, read_bundle),
}


def make_hook(step: int, how: str, folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGING_EVENTS and not (event == "open" and str(folder) not in str(arguments[0])):
            count += 1
            if count == step:
                if how == "kill":
                    os._exit(1)
                raise KeyboardInterrupt

    return hook


def main(what: str, how: str, folder: Path, others: bool) -> None:
    write, read = WRITES[what]
    write(folder / "first", "old")  # imports everything before the forks
    step, status = 0, 1
    while status:
        step += 1
        place = folder / f"step{step}" / "place"
        place.parent.mkdir()
        shutil.copytree(folder / "first", place)
        if others:
            (place / ".git").mkdir()
            (place / ".git" / "config").write_text("mine")
            (place / "notes.txt").write_text("mine")
        child = os.fork()
        if child == 0:
            sys.addaudithook(make_hook(step, how, folder))
            try:
                write(place, "new")
            except KeyboardInterrupt:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        left = {"step": step, "read": read(place), "files": read_files(place.parent)}
        write(place, "new")
        print(json.dumps({**left, "anew": read(place), "then": read_files(place.parent)}))
        shutil.rmtree(place.parent)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "others")
