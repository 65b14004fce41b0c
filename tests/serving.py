"""Runs `shiftvit serve` on the loopback address: in a thread, or as a process that can receive signals."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from shiftvit.inference.runtimes import load_graph
from shiftvit.serve.app import create_app
from shiftvit.serve.guard import Access
from shiftvit.serve.limits import Limits
from shiftvit.serve.measures import Measures
from shiftvit.serve.model import ServedModel
from shiftvit.serve.server import Server, listen


def ask(port, method, path, body=None, headers=None, timeout=30):
    """Returns (status, headers, content) of a request."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


class ThreadedServer:
    """`shiftvit serve` in a thread of this process.

    Attributes:
        port: the port that it listens on.
        model: the default model, whose graph tests may replace.
        models: the models by name; tests may add some.
    """

    def __init__(self, limits=None, access=None, graph=None):
        self.limits = limits or Limits()
        measures = Measures()
        self._decoders = ThreadPoolExecutor(2)
        graph = graph or load_graph("cifar10", "onnxruntime", 1)
        self.model = ServedModel("cifar10", graph, self.limits, self._decoders, measures)
        self.models = {"cifar10": self.model}
        self.guard = create_app(self.models, self.limits, access or Access(), measures)
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = Server(self.guard)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()

    def close(self):
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.model.batcher.stop()
        self._decoders.shutdown()
        self._listener.close()

    def ask(self, method, path, body=None, headers=None, timeout=30):
        """Returns (status, headers, content) of a request."""
        return ask(self.port, method, path, body, headers, timeout)

    def post(self, path, body, headers=None):
        """Returns (status, parsed JSON) of a POST."""
        status, _, content = self.ask("POST", path, body, headers)
        return status, json.loads(content)


@contextlib.contextmanager
def run_server(**settings):
    server = ThreadedServer(**settings)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def start_server(*arguments):
    """Runs `shiftvit serve` as a process; yields the process and its port."""
    command = [sys.executable, "-m", "shiftvit", "serve", "--port", "0", "--threads", "1", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+:(\d+);", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()


def make_picture(seed=0, size=(40, 48), form="PNG"):
    """Returns the bytes of a random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()
