"""Atomic writes: a file is written to a temporary folder beside its target, synced, and renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from shiftvit.errors import ShiftViTError, describe_error, notice

# The lock file of the process that works in a folder.
_LOCK = ".lock"
# Suffixes of files. A folder should not have one.
_FILE_SUFFIX = re.compile(
    r"\.(7z|bz2|csv|gz|h5|html|jpe?g|jsonl?|keras|npz|onnx|parquet|pb|pdf|png|pt|pt2|pth|rar|safetensors|svg|tar|tflite"
    r"|tgz|txt|webp|xml|xz|zip)",
    re.IGNORECASE,
)


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path in the same folder and renames the result to `path`.

    A crash or a full disk leaves the old content of `path`.

    Raises:
        ShiftViTError: the disk is full, the folder is missing or not writable, or `path` is a device or a pipe.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise FileExistsError(errno.EEXIST, "it is not a regular file")
        with make_temporary_folder(path.parent, path.name) as work:
            temporary = work / path.name
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise explain_unwritable(path, error) from error


@contextlib.contextmanager
def make_temporary_folder(folder: Path, name: str) -> Iterator[Path]:
    """Makes a temporary folder in `folder`, to prepare the file `name` in, and removes it at the end.

    Temporary folders for the same name that killed processes left are removed first.
    """
    import tempfile

    name = name[:64]  # so that the temporary name is not too long
    delete_abandoned(folder, glob.escape(name))
    while True:
        work = Path(tempfile.mkdtemp(".tmp", f".{name}.", folder))
        try:
            with (work / _LOCK).open("a") as file:
                if lock(file, wait=False) is False or not (work / _LOCK).exists():
                    continue  # another process took it for abandoned before it was locked, and deletes it
                yield work
                return
        finally:
            try:
                shutil.rmtree(work, ignore_errors=True)
            except KeyboardInterrupt:
                shutil.rmtree(work, ignore_errors=True)
                raise


def delete_abandoned(folder: Path, pattern: str = "*", *, alone: bool = False) -> None:
    """Deletes the temporary folders of killed processes, if possible.

    Args:
        folder: where `make_temporary_folder` made them.
        pattern: a glob pattern for the names of the files that were prepared in them.
        alone: no other process makes any there now, so even those without a lock are abandoned.
    """
    for left in folder.glob(f".{pattern}.*.tmp"):
        if alone:
            shutil.rmtree(left, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            with (left / _LOCK).open("r+") as file:
                if lock(file, wait=False) is not True:  # the process that made it still runs
                    continue
                shutil.rmtree(left, ignore_errors=True)  # while it is locked, as its process may be about to lock it
            if left.exists():  # Windows does not delete an open file
                (left / _LOCK).unlink()
                left.rmdir()


def check_file(
    path: Path, endings: Sequence[str], inputs: Iterable[str | os.PathLike[str]] = (), *, in_place: bool = False
) -> None:
    """Raises ShiftViTError if a file cannot be written at `path`. Call it before long work.

    Args:
        path: the file.
        endings: the allowed suffixes, such as ".png".
        inputs: files that the program reads, which it must not overwrite.
        in_place: an existing file is written to, not replaced, so that its folder need not be writable.
    """
    if path.is_dir():
        raise ShiftViTError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if path.suffix.lower() not in endings:
        known = ", ".join(ending or "none" for ending in endings)
        raise ShiftViTError(f"{str(path)!r} has no known suffix; use one of: {known}")
    if path.exists():
        if any(os.path.exists(name) and path.samefile(name) for name in inputs):  # noqa: PTH110  (a name may be too long)
            raise ShiftViTError(f"{str(path)!r} is also read here, and would be overwritten; name another file")
        if in_place or not path.is_file():
            return
    _try_folder(path.parent, path)


def check_folder_name(path: Path) -> None:
    """Raises ShiftViTError if a new folder would have the suffix of a file."""
    if _FILE_SUFFIX.fullmatch(path.suffix) and not path.is_dir():
        raise ShiftViTError(
            f"{str(path)!r} is named like a file, but the output is a folder; leave out {path.suffix!r}"
        )


def check_folder(path: Path) -> None:
    """Raises ShiftViTError if a folder at `path` cannot be created or written to. Leaves nothing behind."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    _try_folder(there, path)


def _try_folder(folder: Path, wanted: Path) -> None:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise explain_unwritable(wanted, error) from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; errors as for `write_file`."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A path may hold bytes that are not UTF-8; they become `\udcff` and so on, which is how JSON escapes them.
    write_file(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace"))


def make_csv_writer(stream: IO[str]) -> Any:
    """Returns a `csv.writer` whose lines end in a line feed, and which also quotes carriage returns.

    Before 3.13, Python quotes only the characters that end its lines, and cannot read others back.
    """
    import csv

    lines: Any = SimpleNamespace(write=lambda line: stream.write(line.removesuffix("\r\n") + "\n"))
    return csv.writer(lines, lineterminator="\r\n")


def read_unlinked(path: Path) -> bytes:
    """Returns the content of a regular file. Refuses a link, and does not wait for a pipe.

    Use it for untrusted files: a link among them could lead to a private file, which would then be shared.

    Raises:
        OSError: the file cannot be read, is a link, or is not a regular file.
    """

    def check(mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {'a link' if stat.S_ISLNK(mode) else 'no regular file'}", str(path))

    check(path.lstat().st_mode)
    # It may have been replaced by a link or a pipe. Windows lacks these flags, and has no pipes in folders.
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    with os.fdopen(os.open(path, sum((getattr(os, flag, 0) for flag in flags), os.O_RDONLY)), "rb") as file:
        check(os.fstat(file.fileno()).st_mode)
        return file.read()


def hash_file(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal."""
    import hashlib  # only here, because loading OpenSSL would slow down `--help`

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(file: IO[str], wait: bool) -> bool | None:
    """Locks a file until it is closed or the process ends.

    The package `filelock` is not used, because it is not a core dependency and slow to import for `shiftvit predict`.

    Returns:
        True: this process holds the lock; False: another process does; None: the system has no such locks,
        and only unique temporary names and atomic renames keep processes apart.
    """
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                file.seek(0)  # locks bytes from here on, which need not exist
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    return None
            else:
                return True
            if not wait:
                return False
            time.sleep(0.1)
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def take_turn(folder: Path, work: str) -> Iterator[None]:
    """Creates `folder` and lets one process at a time work in it, after what killed ones left is deleted.

    Args:
        folder: where the work is done; its file `.lock` is the lock.
        work: the work of the other process, for the notice that this one waits.

    Raises:
        OSError: the folder cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:
        alone = lock(file, wait=False)
        if alone is False:
            notice(f"another process is {work}; waiting for it")
            alone = lock(file, wait=True)
        if alone:
            delete_abandoned(folder, alone=True)
        yield


def find_cache_folder(name: str) -> Path:
    """Returns the folder for one kind of cached data: below `$SHIFTVIT_CACHE`, or in the user's cache folder."""
    chosen = os.environ.get("SHIFTVIT_CACHE")
    if chosen:
        return Path(chosen).expanduser() / name
    from platformdirs import user_cache_path

    return user_cache_path("shiftvit") / name


def find_data_folder(name: str) -> Path:
    """Returns the folder for one kind of data to keep: below `$SHIFTVIT_DATA`, or in the user's data folder."""
    chosen = os.environ.get("SHIFTVIT_DATA")
    if chosen:
        return Path(chosen).expanduser() / name
    from platformdirs import user_data_path

    return user_data_path("shiftvit") / name


def explain_unwritable(path: Path, error: OSError) -> ShiftViTError:
    """Returns the error for a path that cannot be written."""
    reason, mend = describe_error(error), suggest_place(error, "choose another place")
    if error.errno == errno.ENOENT:
        mend = f"make the folder {str(Path(path).parent)!r}, or choose another place"
    return ShiftViTError(f"cannot write {str(path)!r}: {reason}; {mend}")


def suggest_place(error: OSError, another: str) -> str:
    """Returns the end of an error's message: to take `another` place, or also to free space if there is none left."""
    return f"free space, or {another}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else another


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are already durable
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
