"""The folder of a bulk run's results, on this machine or by URI with pyarrow."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shiftvit import files
from shiftvit.errors import ShiftViTError
from shiftvit.inference.storage import is_uri, open_storage, report_unreachable

# The suffix of the hidden file of a block that is being processed. It has a byte for each actor that began it.
BEGUN = ".begun"


class OutputFolder:
    """A folder for output, on this machine or by URI. Its files are written atomically.

    Args:
        name: a path or a URI.
    """

    def __init__(self, name: str) -> None:
        from pyarrow import fs  # type: ignore[import-untyped]

        self._name, self._is_local = name, not is_uri(name)
        if self._is_local:
            self._filesystem, self._path = fs.LocalFileSystem(), str(Path(name).absolute())
        else:
            storage, self._path = open_storage(name)
            self._filesystem = storage.filesystem

    def __str__(self) -> str:
        return self._name

    @property
    def place(self) -> str:
        """The absolute path, or the URI."""
        return self._path if self._is_local else self._name

    def check(self) -> None:
        """Raises ShiftViTError if it cannot be created or written, as far as a check without writing can tell."""
        path = Path(self._path)
        if self._is_local:
            files.check_folder_name(path)
        with report_unreachable(self._name):
            is_file = self._filesystem.get_file_info(self._path).is_file
        if is_file:
            raise ShiftViTError(f"{self._name!r} is a file, but the output is a folder; choose another name")
        if self._is_local:
            files.check_folder(path)

    def make(self) -> None:
        """Creates the folder, if it does not exist.

        Raises:
            ShiftViTError: it cannot be created.
        """
        with report_unreachable(self._name):
            self._filesystem.create_dir(self._path, recursive=True)

    def list_names(self) -> list[str]:
        """Returns the names of its files and folders, without unfinished files; [] if it does not exist.

        Raises:
            ShiftViTError: it cannot be listed.
        """
        from pyarrow import fs

        with report_unreachable(self._name):
            found = self._filesystem.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def has(self, name: str) -> bool:
        """Returns whether it has a file of this name.

        Raises:
            ShiftViTError: it cannot be reached.
        """
        with report_unreachable(self._name):
            return bool(self._filesystem.get_file_info(f"{self._path}/{name}").is_file)

    def read(self, name: str) -> bytes:
        """Returns the content of a file in it.

        Raises:
            ShiftViTError: it cannot be read.
        """
        path = f"{self._path}/{name}"
        with report_unreachable(f"{self._name}/{name}"), self._filesystem.open_input_file(path) as file:
            return bytes(file.read())

    def identify(self) -> str:
        """Returns the beginning that the identities of all files in it share, as `Storage.identify` gives them."""
        if self._is_local:
            return os.path.join(os.path.realpath(self._path), "")  # noqa: PTH118  (a path with its last separator)
        return f"{self._name.split('://', 1)[0]}://{self._path}/"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lets one process at a time on a file system decide whose run the folder holds. By URI it does not wait."""
        if not self._is_local:
            yield
            return
        lock = Path(self._path, ".lock")
        try:
            file = lock.open("a")
        except OSError as error:
            raise files.explain_unwritable(lock.parent, error) from error
        with file:
            files.lock(file, wait=True)
            try:
                yield
            finally:
                with suppress(OSError):  # Windows does not delete an open file
                    lock.unlink()

    def delete(self, name: str) -> None:
        """Deletes a file in it, if possible."""
        with suppress(OSError):
            self._filesystem.delete_file(f"{self._path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a file in it.

        Raises:
            ShiftViTError: the disk is full, the folder is not writable, or the file system fails.
        """
        if self._is_local:
            files.write_file(Path(self._path, name), lambda temporary: temporary.write_bytes(content))
            return
        with report_unreachable(f"{self._name}/{name}"):
            try:
                self._upload(name, content)
            except OSError:  # a second start of the same run may have swept the unfinished file away
                self._upload(name, content)

    def _upload(self, name: str, content: bytes) -> None:
        filesystem, new = self._filesystem, f"{self._path}/.{name}.{uuid.uuid4().hex}.tmp"
        try:
            with filesystem.open_output_stream(new) as stream:
                stream.write(content)
            filesystem.move(new, f"{self._path}/{name}")
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(new)
            raise

    def sweep(self) -> None:
        """Deletes the unfinished files of killed processes, if possible; by URI also those of other live starts."""
        if self._is_local:
            files.delete_abandoned(Path(self._path))
            for left in Path(self._path).glob(f".*{BEGUN}"):
                self.delete(left.name)
            return
        from pyarrow import fs

        with suppress(OSError):
            for info in self._filesystem.get_file_info(fs.FileSelector(self._path)):
                if info.base_name.startswith(".") and info.base_name.endswith((".tmp", BEGUN)):
                    self._filesystem.delete_file(info.path)
