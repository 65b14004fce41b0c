"""Replacing files and folders: the old or the new content survives every interruption, and foreign files stay."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from sample import load_sample
from shiftvit import Bundle, Preprocess, ShiftViT, ShiftViTError, evaluate, files
from shiftvit.bundle.bundle import CARD, GRAPH, MANIFEST, WEIGHTS
from shiftvit.data import named
from shiftvit.exports import export
from shiftvit.files import lock, read_unlinked, take_turn, write_file
from shiftvit.replacement import find_current, write_folder

NAMES = ("a.txt", "b.txt", "old.txt")


def write_files(folder: Path, text: str, names: tuple[str, ...] = NAMES[:2], **options: Any) -> None:
    write_folder(folder, lambda new: [(new / name).write_text(text) for name in names], NAMES, **options)


def read_contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("others", ["alone", "others"])
@pytest.mark.parametrize("how", ["kill", "interrupt"])
@pytest.mark.parametrize("what", ["folder", "bundle"])
def test_interruption_leaves_the_old_or_the_new_content(what: str, how: str, others: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_steps.py")
    command = [sys.executable, str(script), what, how, str(tmp_path), others]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 20
    foreign = {"place/.git/config", "place/notes.txt"} if others == "others" else set()
    old, new = rows[0]["files"], rows[-1]["files"]
    assert [row["read"] for row in rows[:1] + rows[-1:]] == [["old"], ["new"]]
    assert (
        new.keys()
        == (
            {"place/a.txt", "place/b.txt", "place/deep/c.txt"}
            if what == "folder"
            else {f"place/{name}" for name in (WEIGHTS, MANIFEST, CARD)}
        )
        | foreign
    )
    for row in rows:
        found = row["files"]
        assert row["read"] in (["old"], ["new"]), row
        assert {name: found[name] for name in foreign} == {name: old[name] for name in foreign}
        if how == "interrupt":  # nothing else is left, except perhaps in the last step but one
            assert found in (old, new) or row is rows[-2], row
        if others == "alone" and sys.platform == "linux":  # no program sees a mixture of both
            shown = {name: value for name, value in found.items() if name in {*old, *new}}
            assert shown in (old, new), row
        # The next write finishes what was begun, and deletes what killed processes left.
        assert (row["anew"], row["then"]) == (["new"], new)


def test_other_files_and_links_to_folders_stay(tmp_path: Path) -> None:
    real = tmp_path / "disk"
    (real / ".git").mkdir(parents=True)
    (real / ".git" / "HEAD").write_text("mine")
    (tmp_path / "link").symlink_to(real)
    for text, names in (("first", NAMES), ("second", NAMES[:2])):
        write_files(tmp_path / "link", text, names)
        assert read_contents(real) == {".git/HEAD": "mine", **dict.fromkeys(names, text)}
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["file", "folder", "kept"])
def test_foreign_file_of_the_same_name_is_not_replaced(kind: str, tmp_path: Path) -> None:
    write_files(tmp_path / "place", "first", NAMES)
    if kind == "folder":
        (tmp_path / "place" / "b.txt").unlink()
        (tmp_path / "place" / "b.txt").mkdir()
    before = read_contents(tmp_path)
    names = ("a.txt", "c.txt") if kind == "file" else NAMES[:2]
    if kind == "file":
        (tmp_path / "place" / "c.txt").write_text("mine")
        before = read_contents(tmp_path)
    with pytest.raises(ShiftViTError, match=r"[bc].txt' exists and is not shiftvit's, so it is not replaced; move it"):
        write_files(tmp_path / "place", "second", names, keep=("b.txt",) if kind == "kept" else ())
    assert read_contents(tmp_path) == before


def test_arrived_files_of_other_names_do_not_replace_any(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".shiftvit-arriving" / "new").mkdir(parents=True)
    (tmp_path / ".shiftvit-arriving" / "new" / "notes.txt").write_text("theirs")
    write_files(tmp_path, "first")
    assert read_contents(tmp_path) == {"notes.txt": "mine", **dict.fromkeys(NAMES[:2], "first")}


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_replaced_folder_keeps_its_permissions(tmp_path: Path) -> None:
    write_files(tmp_path / "place", "first")
    (tmp_path / "place").chmod(0o750)
    write_files(tmp_path / "place", "second")
    assert stat.S_IMODE((tmp_path / "place").stat().st_mode) == 0o750


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
def test_files_and_their_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def note(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    write_file(tmp_path / "c.txt", lambda temporary: temporary.write_text("text"))
    assert synced == [path.stat().st_ino for path in (tmp_path / "c.txt", tmp_path)]
    synced.clear()
    write_files(tmp_path / "place", "first")
    files_of_the_folder = {(tmp_path / "place" / name).stat().st_ino for name in NAMES[:2]}
    assert {*synced[:-1]} == files_of_the_folder
    assert synced[-1] == tmp_path.stat().st_ino


def test_working_directory_stays_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a shell with this working directory would be left in a deleted one."""
    write_files(tmp_path / "place", "first")
    inode = (tmp_path / "place").stat().st_ino
    monkeypatch.chdir(tmp_path / "place")
    write_files(Path(), "second")
    assert (tmp_path / "place").stat().st_ino == inode
    assert read_contents(tmp_path / "place") == dict.fromkeys(NAMES[:2], "second")


def test_links_do_not_redirect_reading_or_writing(tmp_path: Path) -> None:
    (tmp_path / "private" / "new").mkdir(parents=True)
    (tmp_path / "private" / "new" / "a.txt").write_text("private")
    write_files(tmp_path / "place", "first")
    (tmp_path / "place" / ".shiftvit-arriving").symlink_to(tmp_path / "private")
    assert find_current(tmp_path / "place" / "a.txt").read_text() == "first"
    write_files(tmp_path / "place", "second")
    assert (tmp_path / "private" / "new" / "a.txt").read_text() == "private"
    assert (tmp_path / "place" / "a.txt").read_text() == "second"
    (tmp_path / "other" / ".shiftvit-arriving").mkdir(parents=True)
    (tmp_path / "other" / ".shiftvit-arriving" / "new").symlink_to(tmp_path / "private" / "new")
    assert find_current(tmp_path / "other" / "a.txt") == tmp_path / "other" / "a.txt"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize(("kind", "fault"), [("link", "symbolic links"), ("pipe", "it is no regular file")])
def test_file_that_becomes_a_link_or_pipe_is_not_read(
    kind: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private").write_text("private")
    if kind == "link":
        (tmp_path / "place").symlink_to(tmp_path / "private")
    else:
        os.mkfifo(tmp_path / "place")
    before = (tmp_path / "private").stat()
    monkeypatch.setattr(Path, "lstat", lambda _: before)
    with pytest.raises(OSError, match=fault):
        read_unlinked(tmp_path / "place")


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no open file")
@pytest.mark.parametrize("sweeper", ["done", "at work"])
def test_temporary_folder_that_is_swept_before_it_is_locked_is_made_anew(
    sweeper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finds the folder between its making and its locking, and takes it for abandoned."""
    found: list[Path] = []

    def sweep_then_lock(file: IO[str], wait: bool) -> bool | None:
        if found:
            return lock(file, wait)
        found.append(Path(file.name).parent)
        if sweeper == "done":
            files.delete_abandoned(tmp_path)
            return lock(file, wait)
        with Path(file.name).open("r+") as other:
            assert lock(other, wait=False)
            return lock(file, wait)

    monkeypatch.setattr(files, "lock", sweep_then_lock)
    with files.make_temporary_folder(tmp_path, "a") as work:
        if sweeper == "at work":
            shutil.rmtree(found[0], ignore_errors=True)
        (work / "a").write_text("content")
        files.delete_abandoned(tmp_path)
        assert (work / "a").read_text() == "content"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_device_is_never_replaced(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/null")
    with pytest.raises(ShiftViTError, match=r"cannot write .*place': it is not a regular file"):
        write_file(place, lambda temporary: temporary.write_text("text"))
    assert not place.is_file()
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.skipif(os.name == "nt", reason="Windows limits whole paths")
def test_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    place = tmp_path / ("n" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_file(place, lambda temporary: temporary.write_text("text"))
    assert place.read_text() == "text"


def test_turn_begins_without_what_killed_processes_left(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.0.tmp").mkdir()  # killed before it made its lock
    with take_turn(tmp_path, "working"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_only_temporary_files_of_dead_processes_are_deleted(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom shiftvit.files import write_file\n"
        "def write(path):\n    path.write_text('x')\n    print(flush=True)\n    sys.stdin.read()\n"
        "write_file(Path(sys.argv[1]), write)"
    )
    place = tmp_path / "a[b].txt"
    command = [sys.executable, "-c", program, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        write_file(place, lambda temporary: temporary.write_text("y"))
        assert len(list(tmp_path.iterdir())) == 2
        process.kill()
        process.wait()
    write_file(place, lambda temporary: temporary.write_text("z"))
    assert read_contents(tmp_path) == {"a[b].txt": "z"}


@pytest.mark.skipif(os.name == "nt", reason="simulates Windows with the locks of other systems")
@pytest.mark.parametrize("system", ["this", "win32"])
def test_lock_excludes_others_until_it_is_closed(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl
    import threading
    import types

    def locking(number: int, mode: int, count: int) -> None:
        """Locks as on Windows: raises EACCES if another holds the lock."""
        assert (mode, count, os.lseek(number, 0, os.SEEK_CUR)) == (2, 1, 0)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EACCES, "Permission denied") from error

    if system == "win32":
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert lock(first, wait=False) is True
        assert lock(second, wait=False) is False
        threading.Timer(0.2, first.close).start()
        assert lock(second, wait=True) is True
        assert first.closed


@pytest.fixture
def cloned_bundle(tmp_path: Path) -> Path:
    """A bundle in a clone of its repository, with notes beside it."""
    folder = Bundle.load("cifar10").save(tmp_path / "clone")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_bundle_in_a_clone_is_replaced_in_place(cloned_bundle: Path) -> None:
    export.pack("cifar10", cloned_bundle, half=True)
    assert Bundle.load(cloned_bundle).graph is None
    assert {path.name for path in cloned_bundle.iterdir()} == {".git", "notes.txt", WEIGHTS, MANIFEST, CARD}
    assert (cloned_bundle / "notes.txt").read_text() == "mine"
    assert (cloned_bundle / ".git" / "HEAD").read_text() == "ref: refs/heads/main"
    # A graph that the manifest does not list does not belong to the bundle.
    (cloned_bundle / GRAPH).write_bytes(b"mine")
    export.pack("cifar10", cloned_bundle, half=True)
    assert (cloned_bundle / GRAPH).read_bytes() == b"mine"
    with pytest.raises(ShiftViTError, match=r"model.onnx' exists and is not shiftvit's"):
        export.pack("cifar10", cloned_bundle)
    assert Bundle.load(cloned_bundle).weights["head/kernel"].dtype == "float16"


@pytest.mark.parametrize("text", ['{"name": "webpack", "files": []}', "[]", "{}", "3"])
def test_bundle_json_of_another_program_is_not_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ShiftViTError, match="exists and is not a bundle, so it is not replaced"):
        export.pack("cifar10", tmp_path)
    assert read_contents(tmp_path) == {MANIFEST: text}


@pytest.mark.parametrize("damage", ["", "{", '{"format": 1'])
def test_damaged_bundle_is_replaced(damage: str, tmp_path: Path) -> None:
    folder = Bundle.load("cifar10").save(tmp_path / "model")
    (folder / MANIFEST).write_text(damage)
    export.pack("cifar10", folder)
    assert Bundle.load(folder).graph


def test_archive_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    import zipfile

    archive = export.pack("cifar10", tmp_path / "a.zip")
    export.pack("cifar10", archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("notes.txt", "mine")
    with pytest.raises(ShiftViTError, match=r"holds more than a bundle \('notes.txt'\), so it is not replaced"):
        export.pack("cifar10", archive)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_evaluation_replaces_only_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_sample()
    small = {"test": data.test.take(range(20))}
    monkeypatch.setitem(named._LOADERS, "cifar10", lambda: replace(data, splits=small))
    model = ShiftViT((32, 32, 3), num_classes=10, patch_size=4, embed_dim=24, depths=(1,))
    bundle = Bundle.from_model(model, data.class_names, Preprocess())
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "notes.txt").write_text("mine")
    (out / "corruptions.png").write_bytes(b"mine")
    evaluate(bundle, out=out)
    assert (out / "corruptions.png").read_bytes() == b"mine"
    (out / "corruptions.png").write_bytes(b"of an earlier one")
    before = (out / "mistakes.png").read_bytes()
    evaluate(bundle, out=out)
    names = {"evaluation.json", "confusion_matrix.png", "reliability.png", "mistakes.png", "deep"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "mistakes.png").read_bytes() == before
    (out / "evaluation.json").unlink()  # without it, nothing shows that shiftvit made the figures
    with pytest.raises(ShiftViTError, match=r"png' exists and is not shiftvit's, so it is not replaced"):
        evaluate(bundle, out=out)


@pytest.mark.parametrize(
    ("names", "replaced"),
    [
        (["report.json", "model.onnx"], True),
        (["report.json", "model.xml", "model.bin"], True),
        (["report.json", "saved_model/saved_model.pb", "saved_model/variables/variables.index"], True),
        ([], True),  # an empty folder
        (["model.onnx"], False),
        (["report.json", "model.onnx", "model.xml"], False),
        (["report.json", "model.onnx", "notes.txt"], False),
        (["report.json", "saved_model/saved_model.pb", "saved_model/notes.txt"], False),
        (["report.json", "saved_model/saved_model.pb", "saved_model/variables/deep/notes.txt"], False),
        (["report.json", "deep/model.onnx"], False),
    ],
)
def test_only_exports_are_replaceable(names: list[str], replaced: bool, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"precision": "f32"}')
    assert export._is_replaceable(tmp_path) is replaced


@pytest.mark.parametrize(("report", "replaced"), [("{}", True), ("{", True), ('{"tests": 3}', False), ("[]", False)])
def test_report_of_another_program_is_not_replaceable(report: str, replaced: bool, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report)
    (tmp_path / "model.onnx").write_bytes(b"")
    assert export._is_replaceable(tmp_path) is replaced
