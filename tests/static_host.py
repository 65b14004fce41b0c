"""Serves a folder over HTTP, and writes the demo that the tests serve."""

import contextlib
import functools
import http.server

import pytest

import shared
from file_server import listen
from shiftvit import ShiftViTError
from shiftvit.exports import export
from shiftvit.serve import demo


@contextlib.contextmanager
def host_folder(folder, place=""):
    """Serves a folder below a path, such as "/try", as `python -m http.server` does; yields its URL.

    Like many hosts it knows no media types for .mjs, .wasm, .onnx and .bin files.
    """

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def guess_type(self, path):
            unknown = str(path).endswith((".mjs", ".wasm", ".onnx", ".bin"))
            return "application/octet-stream" if unknown else super().guess_type(path)

        def translate_path(self, path):
            return super().translate_path(path.removeprefix(place) if path.startswith(place) else "/nothing here")

    with listen(functools.partial(Handler, directory=folder)) as url:
        yield f"{url}{place}"


def make_demo_once(scratch):
    """Returns the demo's folder for the packaged model, written once in a test run. Tests must not change it.

    Skips the test if onnxruntime-web cannot be downloaded. `scratch` is an empty folder.
    """
    try:
        demo._copy_runtime(scratch / "runtime", None)
    except ShiftViTError as error:
        pytest.skip(f"onnxruntime-web cannot be downloaded: {error}")
    return shared.make_once("demo", _write_demo)


def _write_demo(place):
    from exported import run_step  # imports a framework

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_run_step", run_step)  # in processes that other exports use too
        demo.write_demo("cifar10", place, space=True)
