"""`write_demo`: the page with the model in the browser, as a folder for any static host."""

from __future__ import annotations

import json
import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from shiftvit import files
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.metadata import make_metadata
from shiftvit.bundle.stored.container import hash_content
from shiftvit.bundle.stored.find import PRETRAINED, choose_name
from shiftvit.errors import ShiftViTError, describe_error
from shiftvit.exports.export import export
from shiftvit.exports.formats import FORMATS
from shiftvit.npm import download_package
from shiftvit.replacement import write_folder

_PAGE = Path(__file__).parent / "page"
_BROWSER = Path(__file__).parent / "browser"
RUNTIME = "onnxruntime-web@1.30.0"
# Its files that the demo takes, with their SHA-256.
_RUNTIME_FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
# The files and folders at the top of a demo.
_OURS = ("index.html", "page", "model", "runtime", "samples", "README.md")
# Texts of the page about its server, and their replacements in a demo.
_REPLACED = {
    "They are sent to this server, which does not keep them.": "They stay on this device.",
    "This page needs JavaScript. Without it: curl --data-binary @cat.jpg ADDRESS/v1/classify": (
        "This page needs JavaScript."
    ),
    "Reload it, or use a current browser.": (
        "It needs a current browser, all of its files, and a web server: python -m http.server"
    ),
}
_HEAD = '<meta charset="utf-8">'
# A static host sends no such header itself.
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
    "img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'\">"
)


def write_demo(model: str | Path, out: str | Path, *, space: bool = False, runtime: str | Path | None = None) -> Path:
    """Writes a folder with the page of `shiftvit serve`, the model, and a runtime for browsers.

    The graph takes images of any size (`export --any-size`) and runs in onnxruntime-web, which npm downloads once into
    the cache folder. The page loads nothing from other hosts, and pictures do not leave the browser.

    Args:
        model: a run folder, a bundle or the name of a model.
        out: the folder to create; an earlier demo there is replaced.
        space: add the README.md of a static Space of Hugging Face.
        runtime: the .tgz of the npm package, if you already have it.

    Returns:
        the folder.

    Raises:
        ShiftViTError: the model does not exist or cannot be exported, the runtime cannot be downloaded or differs from
            the tested one, or the folder holds something else.
    """
    folder = Path(out)
    if folder.exists() and not (folder.is_dir() and (is_demo(folder) or not any(folder.iterdir()))):
        raise ShiftViTError(f"{str(folder)!r} exists and is not a demo, so it is not replaced; choose another folder")
    bundle = Bundle.load(model)
    metadata = make_metadata(bundle)

    def write(place: Path) -> None:
        _copy_runtime(place / "runtime", Path(runtime) if runtime is not None else None)
        _copy_page(place)
        _copy_samples(place / "samples")
        with tempfile.TemporaryDirectory() as temporary:
            exported = export(model, "onnx", any_size=True, out=Path(temporary) / "graph")
            (place / "model").mkdir()
            shutil.copyfile(exported / FORMATS["onnx"].artifact, place / "model" / "model.onnx")
        (place / "model" / "head.bin").write_bytes(bundle.weights["head/kernel"].astype("<f4").tobytes())
        about: dict[str, Any] = {
            "name": choose_name(model),
            "labels": list(bundle.labels),
            "input_shape": list(metadata.input_shape),
            "precision": "f32",
            "runtime": "in this browser",
            "explain": True,
            "features": len(bundle.weights["head/kernel"]),
            "preprocess": metadata.preprocess.model_dump(mode="json"),
        }
        files.write_json(place / "model" / "model.json", about)
        card = bundle.files()["README.md"].decode()
        (place / "model" / "card.md").write_text(card, "utf-8")
        if space:
            (place / "README.md").write_text(_render_space_card(about["name"]), "utf-8")

    write_folder(folder, write, _OURS)
    return folder


def is_demo(folder: Path) -> bool:
    """Returns whether a folder is one that `write_demo` wrote."""
    return (folder / "model" / "head.bin").is_file()


def read_space_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a demo for a Space, path to content, without links and other files of the folder.

    Raises:
        ShiftViTError: the demo is incomplete, was written without `space`, or cannot be read.
    """
    mend = f"write it again: shiftvit demo MODEL {shlex.quote(str(folder))} --space"
    places = [place for top in _OURS for place in (folder / top, *sorted((folder / top).rglob("*")))]
    inside = [
        place for place in places if place.is_file() and place.resolve() == folder.resolve() / place.relative_to(folder)
    ]
    try:
        contents = {place.relative_to(folder).as_posix(): place.read_bytes() for place in inside}
    except OSError as error:
        raise ShiftViTError(
            f"cannot read {error.filename!r}: {describe_error(error)}; check its permissions, or {mend}"
        ) from error
    needed = ("index.html", "page/api.js", "model/model.json", "model/model.onnx", "samples/list.json", "README.md")
    for name in (*needed, *(f"runtime/{_rename_runtime_file(name)}" for name in _RUNTIME_FILES)):
        if name not in contents:
            raise ShiftViTError(f"the demo {str(folder)!r} lacks {name!r}; {mend}")
    if b"\nsdk: static\n" not in contents["README.md"].replace(b"\r", b""):
        raise ShiftViTError(f"the README.md of {str(folder)!r} has no line 'sdk: static', as a Space needs; {mend}")
    return contents


def _copy_page(place: Path) -> None:
    """Copies the page, and replaces the module that asks a server by the one that runs the model."""
    shutil.copytree(_PAGE, place / "page")
    shutil.copyfile(_BROWSER / "api.js", place / "page" / "api.js")
    index = (place / "page" / "index.html").read_text("utf-8")
    (place / "page" / "index.html").unlink()
    for text, replacement in (_REPLACED | {_HEAD: f"{_HEAD}\n{_POLICY}"}).items():
        assert text in index, text
        index = index.replace(text, replacement)
    (place / "index.html").write_text(index, "utf-8")


def _copy_samples(place: Path) -> None:
    shutil.copytree(PRETRAINED / "samples", place)
    names = [path.relative_to(place.parent).as_posix() for path in sorted(place.glob("*/*.png"))]
    files.write_json(place / "list.json", names)


def _copy_runtime(place: Path, package: Path | None) -> None:
    """Copies the runtime's files, from the cache if it has them."""
    cache = files.find_cache_folder("onnxruntime-web")
    if package is None and all((cache / name).is_file() for name in _RUNTIME_FILES):
        contents = {name: (cache / name).read_bytes() for name in _RUNTIME_FILES}
    else:
        with tempfile.TemporaryDirectory() as temporary:
            contents = _unpack(package or download_package(RUNTIME, Path(temporary)))
    for name, content in contents.items():
        if hash_content(content) != _RUNTIME_FILES[name]:
            raise ShiftViTError(
                f"{name!r} does not match the tested {RUNTIME} (its SHA-256 differs); download it again"
            )
    place.mkdir()
    cache.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        for target in (place / _rename_runtime_file(name), cache / name):
            files.write_file(target, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]


def _rename_runtime_file(name: str) -> str:
    """Returns the name of a runtime file in a demo: many hosts do not send `.mjs` as JavaScript."""
    return name.replace(".mjs", ".js")


def _unpack(package: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(package) as archive:
            members = {name: archive.extractfile(f"package/dist/{name}") for name in _RUNTIME_FILES}
            return {name: member.read() for name, member in members.items() if member is not None}
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        raise ShiftViTError(f"{str(package)!r} is not the npm package {RUNTIME} ({error}); get it again") from error


def _render_space_card(name: str) -> str:
    """Returns the README.md with the settings of a static Space of Hugging Face."""
    return f"""---
title: {json.dumps(f"{name} in your browser")}
emoji: 🖼️
colorFrom: blue
colorTo: green
sdk: static
app_file: index.html
license: apache-2.0
tags:
- image-classification
- shiftvit
---

{name}, a ShiftViT, classifies pictures in your browser. They do not leave it. Made by `shiftvit demo`.
"""
