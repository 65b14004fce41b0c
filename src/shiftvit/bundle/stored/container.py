"""The files of a bundle, in a folder or a zip archive."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path

from shiftvit import files
from shiftvit.errors import ShiftViTError, describe_error
from shiftvit.replacement import find_current, write_folder
from shiftvit.zips import is_bomb, read_entry

# Zip archives cannot hold an earlier date; a fixed one makes equal bundles equal archives.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Container:
    """Named files that belong together; `where` is their path, for messages."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def read(self, name: str) -> bytes:
        """Returns a file's content; raises ShiftViTError if it is missing or cannot be read."""
        raise NotImplementedError


class Folder(Container):
    """A container that is a folder.

    Links in it are not followed, because a link in a malicious bundle could lead to a private file. The exception is
    the cache of the Hugging Face Hub, with its links from `snapshots/COMMIT/` to `blobs/`.
    """

    def read(self, name: str) -> bytes:
        try:
            return files.read_unlinked(self._find(name))
        except OSError as error:
            raise _explain_unreadable(self.where, name, describe_error(error)) from error

    def _find(self, name: str) -> Path:
        path, folder = find_current(self.where / name), self.where.absolute()
        blobs = folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else None
        if blobs is None or blobs.is_symlink() or not path.is_symlink():
            return path
        target = path.readlink()
        return blobs / target.name if target == Path("..", "..", "blobs", target.name) else path


class Archive(Container):
    """A container that is a zip archive with its files at the top level."""

    def read(self, name: str) -> bytes:
        try:
            with zipfile.ZipFile(self.where) as archive:
                entry = archive.getinfo(name)
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    raise _explain_unreadable(self.where, name, "it is not a regular file")
                packed = min(entry.compress_size, self.where.stat().st_size)  # the archive may lie
                if is_bomb(entry.file_size, packed):
                    raise ShiftViTError(
                        f"{name!r} in {str(self.where)!r} would unpack to {entry.file_size:,} bytes from "
                        f"{packed:,}, too many for a model; get the bundle again"
                    )
                return read_entry(archive, entry)
        except KeyError:
            raise _explain_unreadable(self.where, name, "it is not in the archive") from None
        except (ShiftViTError, MemoryError):
            raise
        except Exception as error:  # the decompressors' errors share no base class
            raise _explain_unreadable(self.where, name, describe_error(error)) from error

    def list_names(self) -> list[str]:
        """Returns the names of all entries."""
        with zipfile.ZipFile(self.where) as archive:
            return archive.namelist()


def open_container(path: Path, name: str) -> Container | None:
    """Returns the container at `path` if it holds a file `name`, else None.

    Raises:
        ShiftViTError: a file cannot be read.
    """
    try:
        if path.is_dir():
            return Folder(path) if find_current(path / name).is_file() else None
        if not path.is_file() or not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            return Archive(path) if name in archive.namelist() else None
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ShiftViTError(f"{str(path)!r} cannot be read ({error}); check its permissions, or restore it") from error


def write_container(
    path: Path, contents: dict[str, bytes], gone: Collection[str] = (), keep: Collection[str] = ()
) -> None:
    """Writes files as a folder, or as a zip archive if the path ends in ".zip": all of them or none.

    Args:
        path: the folder or archive; an earlier one there is replaced.
        contents: the files, by name.
        gone: names of files to delete from an earlier folder.
        keep: names of files that are someone else's in that folder and must not be replaced.

    Raises:
        ShiftViTError: the disk is full or the folder is not writable.
    """
    if path.suffix.lower() == ".zip":
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.explain_unwritable(path, error) from error
        files.write_file(path, lambda temporary: _write_archive(temporary, contents))
        return

    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    write_folder(path, write, {*contents, *gone}, keep)


def hash_content(content: bytes) -> str:
    """Returns the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _write_archive(path: Path, contents: dict[str, bytes]) -> None:
    # Stored, not deflated: weights do not compress, and other tools can map them.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # readable by all, on every system
            archive.writestr(entry, content)


def _explain_unreadable(where: Path, name: str, reason: str) -> ShiftViTError:
    return ShiftViTError(f"{name!r} in {str(where)!r} cannot be read ({reason}); restore the bundle")
