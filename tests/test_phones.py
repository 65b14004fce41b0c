"""Photographs from phones: HEIC files, live photos, and decoders that print messages of their own."""

from __future__ import annotations

import builtins
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import image_matrix as matrix
from shiftvit import ShiftViTError
from shiftvit.cli.inputs import find_sources
from shiftvit.cli.main import app
from shiftvit.data.check.checks import check_data
from shiftvit.data.decode.images import decode
from shiftvit.data.find.find import find_data
from shiftvit.data.find.listing import is_companion, list_images
from shiftvit.errors import suggest_install


def test_missing_pillow_heif_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def import_without_heif(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", import_without_heif)
    with pytest.raises(ShiftViTError) as caught:
        decode(matrix.make_files()["plain.heic"], name="IMG_1.HEIC")
    hint = f"{suggest_install('pillow-heif')}, which is the extra [heic]"
    assert str(caught.value) == f"'IMG_1.HEIC' is a HEIC, and pillow-heif is not installed; {hint}"
    assert decode(matrix.make_files()["plain.avif"]).shape == (32, 32, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_orientation_is_applied_once(orientation: int) -> None:
    """The container has the orientation too; that of the EXIF block must not turn the picture again."""
    picture = matrix.Image.fromarray(matrix.load_picture()[:20])
    found = decode(matrix.encode(picture, "HEIF", quality=95, chroma=444, exif=matrix.make_exif(orientation)))
    expected = matrix.load_picture()[:20] if orientation == 1 else np.rot90(matrix.load_picture()[:20], -1)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


def test_netpbm_depths() -> None:
    values = np.arange(0, 65536, 256, dtype=">u2").reshape(16, 16)
    found = decode(b"P5\n16 16\n65535\n" + values.tobytes())
    np.testing.assert_array_equal(found[..., 0], np.rint(values / 257))
    assert decode(b"P4 8 2\n\xf0\x0f")[:, :, 0].tolist() == [[0] * 4 + [255] * 4, [255] * 4 + [0] * 4]
    assert decode(b"P1 # text\n2 1 0 1")[0, :, 0].tolist() == [255, 0]
    assert decode(b"P6 1 1 3 \1\2\3")[0, 0].tolist() == [85, 170, 255]


@pytest.fixture
def live_photos(tmp_path: Path) -> Path:
    """Two classes of live photos as a phone exports them, each with its video, and one with notes on edits."""
    for number, name in enumerate(("IMG_1.HEIC", "IMG_2.JPG", "IMG_3.jpg")):
        form = "plain.heic" if name.endswith("HEIC") else "baseline.jpg"
        for label in ("cat", "dog"):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / name).write_bytes(matrix.make_files()[form] + bytes([number]))
            (tmp_path / label / Path(name).with_suffix(".MOV").name).write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    (tmp_path / "cat" / "IMG_1.AAE").write_text("<plist/>")
    return tmp_path


def test_videos_of_live_photos_are_silently_left_out(live_photos: Path) -> None:
    assert find_data(live_photos).notes == ()
    assert [Path(path).suffix.lower() for path in list_images([str(live_photos / "cat")], all_files=True)] == [
        ".heic",
        ".jpg",
        ".jpg",
    ]
    assert not check_data(find_data(live_photos)).as_dict().get("corrupt")
    names = sorted(map(str, (live_photos / "cat").iterdir()))  # as a shell expands photos/*
    answer = CliRunner().invoke(app, ["predict", *names, "--format", "csv"], catch_exceptions=False)
    rows = answer.stdout.splitlines()
    assert len(rows) == 4
    assert "could not be read" not in answer.stderr
    (live_photos / "cat" / "holiday.mov").write_bytes(b"video")
    assert not is_companion("holiday.mov", {"holiday.mov", "IMG_1.HEIC"})
    assert find_data(live_photos).notes == ("files of type .mov: 1",)
    alone = CliRunner().invoke(app, ["predict", str(live_photos / "cat" / "IMG_1.MOV"), "--strict"])
    assert alone.exit_code != 0


def test_all_commands_leave_out_the_same_files(live_photos: Path) -> None:
    pytest.importorskip("pyarrow")
    from shiftvit.inference.blocks import Inputs

    names = sorted(map(str, (live_photos / "cat").iterdir()))  # as a shell expands photos/*
    pictures = [name for name in names if name.lower().endswith(("heic", "jpg"))]
    assert len(pictures) == 3 < len(names)
    assert list_images(names) == find_sources(names, False, False) == pictures  # those of `explain` and of `predict`
    assert [entry[1] for entry in Inputs(names).entries] == pictures
    assert Inputs([Path(name).as_uri() for name in names]).count == 3
    assert Inputs(names[:1]).count == 1  # without its picture it is not left out silently


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="on other systems Pillow hides libtiff")
def test_decoders_print_nothing_of_their_own(tmp_path: Path) -> None:
    """libtiff alone prints many lines for these files."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "good.png").write_bytes(matrix.make_files()["plain.png"])
        for name, content in matrix.make_files().items():
            for number in range(3):
                broken = bytearray(content)
                place = len(content) // (2 + number)
                broken[place : place + 40] = b"\xa5" * 40
                (tmp_path / label / f"{number}-{name}").write_bytes(bytes(broken))
    program = "import sys; from shiftvit.cli.main import main; sys.argv[0] = 'shiftvit'; main()"
    unsilenced = (
        "import sys; from shiftvit.data.decode import images, readers; readers._silence_libtiff = lambda: None\n"
        "for path in sys.argv[1:]:\n"
        "    try: images.decode(path)\n"
        "    except Exception: pass\n"
    )
    tiffs = sorted(map(str, tmp_path.rglob("*.tif")))
    answer = subprocess.run([sys.executable, "-c", unsilenced, *tiffs], capture_output=True, text=True, check=True)
    assert answer.stderr.count("\n") > 3
    for command in (["predict", "-r", str(tmp_path), "--format", "csv"], ["data", "check", str(tmp_path)]):
        answer = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
        lines = answer.stderr.splitlines()
        assert [line for line in lines if not line.startswith("shiftvit: ")] == []
    shutil.rmtree(tmp_path)
