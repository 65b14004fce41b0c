"""Atomic writes: a file is written beside its place, synced, then renamed into it."""

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
from typing import IO, Any

from shiftvit.errors import ShiftViTError, notice

# The file in a folder that is locked by the process that works there.
_LOCK = ".lock"
# Endings that no folder has.
_OF_FILES = re.compile(
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
        with workplace(path.parent, path.name) as work:
            temporary = work / path.name
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def workplace(folder: Path, name: str) -> Iterator[Path]:
    """Makes a folder within `folder` to prepare in what will be called `name`, and removes it at the end.

    Those that killed processes left there for that name go first.
    """
    import tempfile

    name = name[:64]  # what is added to a long one would be too much
    for left in folder.glob(f".{glob.escape(name)}.*.tmp"):
        with contextlib.suppress(OSError):
            with (left / _LOCK).open("r+") as file:
                dead = lock(file, wait=False)
            if dead:
                shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(".tmp", f".{name}.", folder))
    try:
        with (work / _LOCK).open("a") as file:
            lock(file, wait=False)
            yield work
    finally:
        try:
            shutil.rmtree(work, ignore_errors=True)
        except KeyboardInterrupt:
            shutil.rmtree(work, ignore_errors=True)
            raise


def check_file(path: Path, endings: Sequence[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Raises ShiftViTError if a file could not be written there: before long work, so that it is not done in vain.

    Args:
        path: the file.
        endings: what its name may end in, such as ".png", which says what is written.
        inputs: files that are read and must stay.
    """
    if path.is_dir():
        raise ShiftViTError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if path.suffix.lower() not in endings:
        known = ", ".join(ending or "no ending" for ending in endings)
        raise ShiftViTError(f"{str(path)!r} has no ending that is written here; name a file with one of: {known}")
    if path.exists():
        if any(os.path.exists(name) and path.samefile(name) for name in inputs):  # noqa: PTH110  (a name may be too long)
            raise ShiftViTError(f"{str(path)!r} is also read here, and would be overwritten; name another file")
        return
    _try_folder(path.parent, path)


def check_folder_name(path: Path) -> None:
    """Raises ShiftViTError if a new folder would be named like a file, and mistaken for one."""
    if _OF_FILES.fullmatch(path.suffix) and not path.is_dir():
        raise ShiftViTError(f"{str(path)!r} is named like a file, and a folder is written; leave {path.suffix!r} out")


def check_folder(path: Path) -> None:
    """Raises ShiftViTError if a folder could not be made there or not be written in. Nothing is left behind."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    _try_folder(there, path)


def _try_folder(folder: Path, wanted: Path) -> None:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(wanted, error) from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all; faults as `write_file`."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def read_unlinked(path: Path) -> bytes:
    """Returns the content of a regular file that is no link. It does not wait for a pipe.

    Files of others are read so: a link among them would lead to a private file, which would then be shared as theirs.

    Raises:
        OSError: the file cannot be read, is a link, or is no regular file.
    """

    def check(mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {'a link' if stat.S_ISLNK(mode) else 'no regular file'}", str(path))

    check(path.lstat().st_mode)
    # It may have become a link or a pipe meanwhile. Windows lacks these flags, and has no pipes in folders.
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    with os.fdopen(os.open(path, sum((getattr(os, flag, 0) for flag in flags), os.O_RDONLY)), "rb") as file:
        check(os.fstat(file.fileno()).st_mode)
        return file.read()


def sha256(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal."""
    import hashlib  # OpenSSL takes its time, which `--help` need not wait for

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(file: IO[str], wait: bool) -> bool | None:
    """Locks a file until it is closed or the process ends.

    These lines stay ours: the package `filelock` comes with some extras only, and takes longer to import than a lock
    may cost `shiftvit predict`.

    Returns:
        True: this process holds the lock; False: another process does; None: the system has no such locks,
        and only unique temporary names and atomic renames keep processes apart.
    """
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                file.seek(0)  # it locks bytes from here on; that there are none does not matter
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
def take_turn(folder: Path, work: str, leftovers: str) -> Iterator[None]:
    """Makes `folder` and lets one process at a time work in it.

    Args:
        folder: where the work is done; its file `.lock` is the lock.
        work: what the other process is doing, for the notice that this one waits.
        leftovers: a pattern of what only killed processes leave in `folder`; it is deleted first.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:
        alone = lock(file, wait=False)
        if alone is False:
            notice(f"another process is {work}; waiting for it")
            alone = lock(file, wait=True)
        if alone:
            delete_all(folder, leftovers)
        yield


def delete_all(folder: Path, pattern: str) -> None:
    """Deletes the files and folders in `folder` that match, as far as they can be deleted."""
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def cache_folder(name: str) -> Path:
    """Returns the folder for one kind of cached data: below `$SHIFTVIT_CACHE`, or in the user's cache folder."""
    chosen = os.environ.get("SHIFTVIT_CACHE")
    if chosen:
        return Path(chosen).expanduser() / name
    from platformdirs import user_cache_path

    return user_cache_path("shiftvit") / name


def data_folder(name: str) -> Path:
    """Returns the folder for one kind of data to keep: below `$SHIFTVIT_DATA`, or in the user's data folder."""
    chosen = os.environ.get("SHIFTVIT_DATA")
    if chosen:
        return Path(chosen).expanduser() / name
    from platformdirs import user_data_path

    return user_data_path("shiftvit") / name


def unwritable(path: Path, error: OSError) -> ShiftViTError:
    """Returns the error for a path that cannot be written."""
    reason = error.strerror or str(error)
    return ShiftViTError(f"cannot write {str(path)!r}: {reason}; free space, or choose another place")


def sync_folder(folder: Path) -> None:
    """Makes what was renamed in a folder durable."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are already durable
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
