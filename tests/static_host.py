"""Hosts a folder, and writes the demo to host."""

import contextlib
import functools
import http.server

import pytest

import shared
from file_server import listen
from shiftvit import ShiftViTError
from shiftvit.serve import demo


@contextlib.contextmanager
def host_folder(folder, place=""):
    """Hosts a folder at a place, such as "/try", as `python -m http.server` does; yields its address.

    It does not know the media types that many hosts do not know.
    """

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def guess_type(self, path):
            unknown = str(path).endswith((".mjs", ".wasm", ".onnx", ".bin"))
            return "application/octet-stream" if unknown else super().guess_type(path)

        def translate_path(self, path):
            return super().translate_path(path.removeprefix(place) if path.startswith(place) else "/nothing here")

    with listen(functools.partial(Quiet, directory=folder)) as url:
        yield f"{url}{place}"


def make_demo_once(scratch):
    """Returns the folder that `write_demo` wrote for the packaged model, once in a run; not to be changed.

    Skips the tests that ask for it where onnxruntime-web cannot be had. `scratch` is an empty folder.
    """
    try:
        demo._copy_runtime(scratch / "runtime", None)
    except ShiftViTError as error:
        pytest.skip(f"onnxruntime-web cannot be had: {error}")
    return shared.make_once("demo", lambda place: demo.write_demo("cifar10", place, space=True))
