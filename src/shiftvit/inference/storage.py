"""Lists and reads files on this machine, or by URI with pyarrow (`s3://`, `gs://`, `file://`)."""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from shiftvit.data.decode.images import MAX_BYTES, read_bytes
from shiftvit.errors import ShiftViTError, describe_error

# At least two letters, because one letter is a drive on Windows.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Errors of one file; others are errors of the network or the file system.
_FILE_ERRORS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_PIECE = 2**20  # bytes that are read at a time to find out whether a file can be read


@lru_cache(maxsize=1024)
def _resolve(folder: str) -> str:
    return os.path.realpath(folder)


def _is_gone(folder: str) -> bool:
    """Returns whether a folder, which had files, is missing or empty, as after its disk was unmounted."""
    try:
        return not any(Path(folder).iterdir())
    except OSError as error:
        return error.errno not in {errno.EACCES, errno.EPERM}


def is_uri(name: str) -> bool:
    """Returns whether a name is a URI and not a path on this machine."""
    return _URI.match(name) is not None


@dataclass(frozen=True)
class Storage:
    """A place of files.

    Attributes:
        root: the folder that relative paths start from; "": all paths are absolute.
        filesystem: a `pyarrow.fs.FileSystem`; None: this machine's.
        prefix: the beginning of the names that a user sees, such as "s3://".
    """

    root: str = ""
    filesystem: Any = None
    prefix: str = ""

    def name(self, path: str) -> str:
        """Returns a file's name for the user."""
        return self.prefix + path

    def locate(self, path: str) -> str:
        """Returns a file's path in the file system."""
        return os.path.join(self.root, path) if self.root else path  # noqa: PTH118  (it may be a URI's path)

    def identify(self, path: str) -> str:
        """Returns a text that is equal for the same file, however a path on this machine is spelled."""
        if self.filesystem is not None:
            return self.prefix + path
        folder, name = os.path.split(self.locate(path))
        return os.path.join(_resolve(folder), name)  # noqa: PTH118  (there may be millions)

    def get_content(self, path: str) -> Callable[[], bytes]:
        """Returns a function that reads an image file, and raises as `read`."""
        if self.filesystem is None:
            return partial(self._read_local, path)
        return partial(self.read, path, MAX_BYTES + 1)

    def open(self, path: str) -> Any:
        """Opens a file and returns it as a file of pyarrow's.

        Raises:
            OSError: it cannot be opened.
        """
        from pyarrow import fs  # type: ignore[import-untyped]

        return (self.filesystem or fs.LocalFileSystem()).open_input_file(self.locate(path))

    def _read_local(self, path: str) -> bytes:
        try:
            return read_bytes(self.locate(path), name=self.name(path))
        except ShiftViTError as error:
            if isinstance(error.__cause__, OSError):
                self.check(path, error.__cause__)
            raise

    def check(self, path: str, error: OSError) -> None:
        """Finds out why a file cannot be read, and returns if that is a fault of the file.

        Args:
            path: the file.
            error: the exception.

        Raises:
            OSError: it is a fault of the file system or the network.
        """
        if error.errno is None:  # of a service on the network, or of pyarrow, whose files are damaged
            try:
                with self.open(path) as file:
                    while file.read(_PIECE):
                        pass
            except OSError as another:
                error = another
            else:
                return
        if error.errno not in _FILE_ERRORS:
            raise error
        if error.errno == errno.ENOENT and getattr(self.filesystem, "type_name", "local") == "local":
            folder = os.path.dirname(self.locate(path))  # noqa: PTH120  (it may be a URI's path)
            if _is_gone(folder):
                raise OSError(f"the folder {folder!r} is missing or empty on the node {platform.node()!r}")

    def read(self, path: str, limit: int | None = None) -> bytes:
        """Returns the first `limit` bytes of a file, or all.

        Raises:
            ShiftViTError: the file does not exist, or may not be read.
            OSError: the file system fails.
        """
        try:
            with self.open(path) as file:
                return bytes(file.read(limit))
        except OSError as error:
            if error.errno is None:
                raise
            self.check(path, error)
            reason = os.strerror(error.errno or 0)
            raise ShiftViTError(f"{self.name(path)!r} cannot be read: {reason}; give a readable image file") from error


def open_storage(uri: str) -> tuple[Storage, str]:
    """Returns the file system of a URI, and the path in it.

    Raises:
        ShiftViTError: the URI has a fragment, or a query that pyarrow would ignore; pyarrow knows no such file system,
            or cannot open it.
    """
    from pyarrow import fs

    for sign, code in (("#", "%23"), ("?", "%3F")):
        # Of a file on this machine, pyarrow drops both; elsewhere a query holds options such as the region.
        if sign in uri and (sign == "#" or uri.lower().startswith("file:")):
            raise ShiftViTError(f"{uri!r} has a {sign!r}, which ends the path of a URI; write it as {code}")
    with report_unreachable(uri):
        filesystem, path = fs.FileSystem.from_uri(uri)
    scheme = uri.split("://", 1)[0] + "://"
    return Storage(filesystem=filesystem, prefix=scheme), path.rstrip("/") or path


@contextmanager
def report_unreachable(uri: str) -> Iterator[None]:
    """Turns an error of a file system into one line.

    Raises:
        ShiftViTError: the file system failed.
    """
    try:
        yield
    except ShiftViTError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own are of these types
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else describe_error(error)
        mend = "the URI and its credentials" if is_uri(uri) else "the path and its permissions"
        raise ShiftViTError(f"{uri!r} cannot be reached: {reason}; check {mend}") from error
