"""What an export takes and leaves: processes, temporary files, disk space and memory."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import tempfile
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from shiftvit import ShiftViTError
from shiftvit.exports import export, space
from shiftvit.exports.arrays import open_arrays, save_arrays

pytest.importorskip("onnxscript")

# Run at the start of every Python process: the one that builds makes a temporary file and waits.
WAIT_WHEN_BUILDING = """
import sys
if "shiftvit.exports.build" in sys.orig_argv:
    import os, pathlib, tempfile, time
    tempfile.mkdtemp()
    started = pathlib.Path(os.environ["STARTED"])
    started.with_suffix(".new").write_text(str(os.getpid()))
    started.with_suffix(".new").rename(started)
    time.sleep(600)
"""


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Returns an empty folder for temporary files, which is used, and one for results."""
    places = tmp_path / "temporary", tmp_path / "results"
    for place in places:
        place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(places[0]))
    return places


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_sigterm_ends_the_step_and_removes_temporary_files(places, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WAIT_WHEN_BUILDING)
    started = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, "-m", "shiftvit", "export", "cifar10", "--out", places[1] / "out"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "TMPDIR": str(places[0]),
            "STARTED": str(started),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    while not started.exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    said = process.communicate()[1]
    assert said.splitlines() == ["shiftvit: building onnx in f32", "shiftvit: terminated"]
    assert process.returncode == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert [*places[0].iterdir(), *places[1].iterdir()] == []


def fail_steps(monkeypatch, tmp_path, said):
    """Makes every step fail with a text on standard error."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.skipif(os.name == "nt", reason="a shell script in place of Python")
@pytest.mark.parametrize(
    ("said", "free", "full"),
    [
        ("OSError: [Errno 28] No space left on device", (5e6, 9e9), 0),
        ("OSError: [Errno 28] No space left on device", (9e9, 5e6), 1),
        ("OSError: [Errno 122] Disk quota exceeded", (9e9, 5e6), 1),
        ("RuntimeError: cannot write", (0, 9e9), 0),
        ("RuntimeError: cannot write", (9e9, 0), 1),
        ("RuntimeError: cannot write", (9e9, 5e6), None),
    ],
)
def test_full_disk_is_named(said, free, full, places, tmp_path, monkeypatch):
    fail_steps(monkeypatch, tmp_path, said)
    usage = {place: SimpleNamespace(free=bytes) for place, bytes in zip(places, free, strict=True)}
    monkeypatch.setattr(space.shutil, "disk_usage", usage.__getitem__)
    with pytest.raises(ShiftViTError) as caught:
        export.export("cifar10", "onnx", out=places[1] / "out")
    if full is None:
        assert str(caught.value).startswith("the step 'build' of the export failed: RuntimeError: cannot write")
    else:
        mend = ("set TMPDIR to another folder", "choose another folder with --out")[full]
        assert str(caught.value) == f"the disk of {str(places[full])!r} is full; free space there, or {mend}"
    assert [*places[0].iterdir(), *places[1].iterdir()] == []


def test_full_temporary_folder_is_named_before_a_step_runs(places, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "save_arrays", fail)
    usage = {places[0]: SimpleNamespace(free=5e6), places[1]: SimpleNamespace(free=9e9)}
    monkeypatch.setattr(space.shutil, "disk_usage", usage.__getitem__)
    with pytest.raises(ShiftViTError, match=r"temporary' is full; free space there, or set TMPDIR to another folder$"):
        export.export("cifar10", "onnx", out=places[1] / "out")


def test_images_are_not_kept_in_memory_while_steps_run(places, monkeypatch):
    choose, kept = export.choose_images, []

    def choose_images(*arguments):
        chosen = choose(*arguments)
        kept.extend(weakref.ref(array) for array in chosen.arrays.values())
        return chosen

    def check(*_):
        gc.collect()
        assert kept
        assert [array() for array in kept] == [None] * len(kept)
        raise ShiftViTError("that is all")

    monkeypatch.setattr(export, "choose_images", choose_images)
    monkeypatch.setattr(export, "_run_step", check)
    with pytest.raises(ShiftViTError, match="that is all"):
        export.export("cifar10", "onnx", out=places[1] / "out")


def test_saved_arrays_are_mapped_and_do_not_change(tmp_path):
    arrays = {"images": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), "calibration": np.zeros((0, 3), np.uint8)}
    save_arrays(tmp_path / "a", arrays)
    found = open_arrays(tmp_path / "a")
    assert found.keys() == arrays.keys()
    assert isinstance(found["images"], np.memmap)
    found["images"][:] = 0
    for name, array in open_arrays(tmp_path / "a").items():
        np.testing.assert_array_equal(array, arrays[name])
