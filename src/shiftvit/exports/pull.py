"""Pulls published weights: downloads, converts and verifies them, and saves them under their name."""

from __future__ import annotations

import zipfile
from pathlib import Path

from shiftvit import files
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.official import convert_checkpoint
from shiftvit.bundle.stored.container import open_container
from shiftvit.bundle.stored.manifest import MANIFEST, Provenance, read_manifest
from shiftvit.bundle.stored.published import PUBLISHED, Published
from shiftvit.download import download
from shiftvit.errors import ShiftViTError, describe_error, notice, suggest
from shiftvit.exports.export import add_graph
from shiftvit.exports.formats import find_format
from shiftvit.zips import check_method

# Bytes; the largest of the paper's models has 400 MB of weights.
_LARGEST = 2**30


def pull_published(name: str, source: str | Path | None = None) -> Path:
    """Makes a bundle of published weights, saves it in the user's data folder and returns its path.

    From then on, the name can be used wherever a model is named. A failure does not change an earlier bundle.

    Args:
        name: a key of `shiftvit.bundle.stored.published.PUBLISHED`.
        source: a file that was downloaded by hand; None: download it.

    Raises:
        ShiftViTError: there are no such weights, a package is missing, the file cannot be downloaded, differs from
            the one that was pulled before or does not fit, or the folder is not writable.
    """
    if name not in PUBLISHED:
        raise ShiftViTError(f"there are no published weights {name!r}; {suggest(name, PUBLISHED)} Or give OWNER/NAME.")
    row = PUBLISHED[name]
    find_format("onnx", "f32")  # reports missing packages before the download
    try:
        with files.take_turn(row.place.parent, f"pulling to {str(row.place.parent)!r}"):
            if source is not None:
                return _save(row, Path(source))
            target = files.find_cache_folder("weights") / f"{name}.pth"
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                download(row.url, target, limit=_LARGEST)
            except ShiftViTError as error:
                raise ShiftViTError(
                    f"{row.url} cannot be downloaded: {error}; run the command again to continue, or get the file "
                    f"another way and run: shiftvit pull {name} --from FILE"
                ) from error
            try:
                place = _save(row, target)
            except ShiftViTError:
                target.unlink()  # or the next run would use it again
                raise
            target.unlink()
            return place
    except OSError as error:
        where = str(error.filename or row.place.parent)
        mend = files.suggest_place(error, "set SHIFTVIT_DATA and SHIFTVIT_CACHE to writable folders")
        raise ShiftViTError(f"cannot write {where!r}: {describe_error(error)}; {mend}") from error


def _save(row: Published, file: Path) -> Path:
    if not file.is_file():
        raise ShiftViTError(f"there is no file {str(file)!r}; give the path of {row.name}.pth")
    _check_whole(file)
    digest = files.hash_file(file)
    notice(f"SHA-256 {digest}")
    earlier = _read_earlier(row)
    if row.sha256 not in (None, digest):
        raise ShiftViTError(f"this is not the published {row.name}: its SHA-256 is {digest}, not {row.sha256}")
    if earlier is not None and earlier.sha256 != digest:
        raise ShiftViTError(
            f"this is not the {row.name} that was pulled on {earlier.date}: its SHA-256 is {digest}, not "
            f"{earlier.sha256}; to use it anyway, first delete {str(row.place)!r}"
        )
    if earlier is not None and _is_intact(row):
        notice(f"this file was already pulled on {earlier.date}, and its bundle is intact")
        return row.place
    bundle = add_graph(convert_checkpoint(file, row.name, published=row))
    try:
        return bundle.save(row.place)
    except ShiftViTError as error:
        text = str(error).replace("choose another place", "set SHIFTVIT_DATA to another folder")
        raise ShiftViTError(text) from error


def _check_whole(file: Path) -> None:
    """Raises ShiftViTError if an entry of a zip archive, as PyTorch writes, has a wrong checksum.

    PyTorch itself does not check it, and a flipped bit in a weight would go unnoticed.
    """
    damaged = None
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    check_method(entry)
                damaged = archive.testzip()  # it unpacks deflated entries in small steps
        except Exception as error:  # the decompressors' errors share no base class
            damaged = type(error).__name__
    if damaged is not None:
        raise ShiftViTError(f"{str(file)!r} is damaged ({damaged!r}); download it again")


def _read_earlier(row: Published) -> Provenance | None:
    """Returns the provenance of the bundle that was pulled before, if there is one."""
    container = open_container(row.place, MANIFEST)
    if container is None:
        return None
    try:
        return read_manifest(container).provenance
    except ShiftViTError:
        return None


def _is_intact(row: Published) -> bool:
    """Returns whether the bundle that was pulled before can be loaded and has a graph."""
    try:
        return Bundle.load(row.place).graph is not None
    except ShiftViTError:
        return False
