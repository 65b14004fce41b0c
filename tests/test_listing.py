"""Lists of files from names and patterns: in a stable order, with a message for each name that matches nothing."""

from __future__ import annotations

import glob
import os

import pytest

from shiftvit import ShiftViTError
from shiftvit.data.find.listing import list_images, split_list


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        "c[1].webp",
        "sub/d.gif",
        "sub/deep/e.tiff",
        "sub/readme",
        "none/x.txt",
        "._a.JPG",
        "sub/@eaDir/d.gif/thumb.jpg",
        "__MACOSX/a.JPG",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "options", "found"),
    [
        (["b.png", "a.JPG"], {}, ["b.png", "a.JPG"]),
        (["notes.txt"], {}, ["notes.txt"]),
        (["."], {}, ["./a.JPG", "./b.png", "./c[1].webp"]),
        (["."], {"all_files": True}, ["./._a.JPG", "./a.JPG", "./b.png", "./c[1].webp", "./notes.txt"]),
        (["sub"], {"recursive": True}, ["sub/d.gif", "sub/deep/e.tiff"]),
        (["sub"], {"recursive": True, "all_files": True}, ["sub/d.gif", "sub/deep/e.tiff", "sub/readme"]),
        (["*.png"], {}, ["b.png"]),
        (["**/*.[gt]if*"], {}, ["sub/d.gif", "sub/deep/e.tiff"]),
        (["c[1].webp"], {}, ["c[1].webp"]),
        (["b.png", "sub", "b.png"], {}, ["b.png", "sub/d.gif", "b.png"]),
    ],
)
@pytest.mark.usefixtures("tree")
def test_names_and_patterns_are_listed(names, options, found):
    assert list_images(names, **options) == found


def test_broken_link_is_listed(tree):
    """A prediction then has a row for it."""
    (tree / "gone.png").symlink_to("nowhere")
    assert list_images(["gone.png"]) == ["gone.png"]
    assert "./gone.png" in list_images(["."])


PATTERNS = ("**/*.gif", "**/[de].*", "sub/**", "**", "**/deep/*", "[sn]*/**/*.t*", "**/**/*.png", "./**/*.JPG", "**/")


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, "{here}/**/*.png", "{here}/s*/**", "../{name}/**/d.gif", "c[[]1]*/**/x.png"]
)
def test_patterns_match_as_for_glob(pattern, tree):
    (tree / "c[1]" / "deep").mkdir(parents=True)
    (tree / "c[1]" / "deep" / "x.png").touch()
    (tree / "none" / "linked").symlink_to(tree / "sub")
    pattern = pattern.format(here=tree, name=tree.name)
    expected = sorted({path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)})  # noqa: PTH112, PTH207
    found = list_images([pattern]) if expected else []
    assert found == expected


def test_links_do_not_lead_a_pattern_in_circles(tree):
    """`glob` would not end: each of the links leads to both."""
    for name in ("up", "again"):
        (tree / "sub" / name).symlink_to(tree)
    assert list_images(["**/*.gif"]) == ["sub/d.gif"]


def test_links_to_folders_are_not_followed(tree):
    (tree / "sub" / "loop").symlink_to(tree / "sub")
    assert list_images(["sub"], recursive=True) == ["sub/d.gif", "sub/deep/e.tiff"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("missing.png", "'missing.png' does not exist; check the path"),
        ("x*.png", r"'x\*.png' matches no file; check the pattern"),
        ("none", "'none' holds no image files; use --recursive .* or use --all-files to read"),
        ("folder.png", "'folder.png' holds no image files"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_names_without_images_are_refused(name, fault):
    with pytest.raises(ShiftViTError, match=fault):
        list_images(["b.png", name])


def test_path_lists_are_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "K\xe4se.png", "tab\there.png", "two\nlines.png", os.fsdecode(b"\xff.png")):
        (tmp_path / name).touch()
    lists = {
        b"a.png": ["a.png"],
        b"a.png\n\nb.png\r\n": ["a.png", "b.png"],
        "\ufeffK\xe4se.png\n".encode(): ["K\xe4se.png"],
        "a.png\r\nb.png\r\n".encode("utf-16"): ["a.png", "b.png"],
        b"a.png\0two\nlines.png\0": ["a.png", "two\nlines.png"],
        b"\xff.png\nb.png": [os.fsdecode(b"\xff.png"), "b.png"],
        b"gone.png\ntab\there.png\n": ["gone.png", "tab\there.png"],
    }
    for content, names in lists.items():
        assert split_list(content) == names


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"gone.png\n",
        b"a.png\0\0a.png",
        b"a.png\n\x01\x02",
        b"a.png\n\xfe\xff",
        b"\0",
        b"\xff\xfe\0\xd8" * 9,
    ],
)
def test_other_content_is_not_a_path_list(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    assert split_list(content) is None
