"""The server under load and during shutdown: batches, full queues, timeouts, disconnects and signals."""

import asyncio
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from serving import ask, make_picture, run_server, start_server
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.exports.any_size import remove_size
from shiftvit.inference.runtimes import load_graph
from shiftvit.serve.answers import Refused
from shiftvit.serve.batching import Batcher
from shiftvit.serve.limits import Limits


class GatedGraph:
    """A graph that answers only while it is open, and records the size of each batch."""

    def __init__(self):
        self.sizes, self.open, self.entered = [], threading.Event(), threading.Event()
        self.open.set()  # the server calls the graph once when it starts
        self.graph = dataclasses.replace(load_graph("cifar10", "onnxruntime", 1), run=self.run)

    def run(self, pixels):
        self.entered.set()
        assert self.open.wait(30)
        self.sizes.append(len(pixels))
        return np.full((len(pixels), 10), 0.1, np.float32)

    def close(self):
        self.open.clear()
        self.entered.clear()
        self.sizes.clear()


def start_threads(count, work):
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    return threads


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_requests_that_wait_form_the_next_batch():
    gate = GatedGraph()
    with run_server(graph=gate.graph, limits=Limits(max_batch=6)) as server:
        gate.close()
        first = start_threads(1, lambda _: server.post("/v1/classify", make_picture()))
        assert gate.entered.wait(20)
        others = start_threads(8, lambda _: server.post("/v1/classify", make_picture()))
        wait_until(lambda: server.model.batcher.pending == 9 and len(server.model.batcher._jobs) == 8)
        gate.open.set()
        for thread in first + others:
            thread.join()
    assert gate.sizes == [1, 6, 2]


def test_full_queue_is_503_and_recovers():
    gate = GatedGraph()
    with run_server(graph=gate.graph, limits=Limits(queue=4)) as server:
        gate.close()
        answers = [None] * 4

        def fill(index):
            answers[index] = server.post("/v1/classify", make_picture())[0]

        threads = start_threads(4, fill)
        wait_until(lambda: server.model.batcher.pending == 4)
        status, headers, content = server.ask("POST", "/v1/classify", make_picture())
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "overloaded" in json.loads(content)["error"]
        assert server.ask("GET", "/v2/health/ready")[0] == 200  # busy is not broken
        gate.open.set()
        for thread in threads:
            thread.join()
        assert answers == [200] * 4
        assert server.model.batcher.pending == 0
        assert server.post("/v1/classify", make_picture())[0] == 200


def test_request_larger_than_the_queue_is_413():
    with run_server(limits=Limits(queue=4)) as server:
        for count, expected in ((4, 200), (5, 413)):
            tensor = {"name": "images", "datatype": "UINT8", "shape": [count, 32, 32, 3], "data": [0] * count * 3072}
            status, content = server.post("/v2/models/cifar10/infer", json.dumps({"inputs": [tensor]}))
            assert status == expected
        assert "queue" in content["error"]


def test_timeout_is_503_and_frees_the_queue():
    gate = GatedGraph()
    with run_server(graph=gate.graph, limits=Limits(timeout=0.3)) as server:
        gate.close()
        assert server.post("/v1/classify", make_picture())[0] == 503
        assert server.model.batcher.pending == 0
        gate.open.set()
        assert server.post("/v1/classify", make_picture())[0] == 200


def send_request(server, path, content):
    """Sends a complete request; returns a function that closes the connection."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    )
    return connection.close


def count_images(server):
    """Returns the number of images that the model has computed, from `/metrics`."""
    text = server.ask("GET", "/metrics")[2].decode()
    return sum(float(value) for value in re.findall(r"^shiftvit_images_total\{.*\} (\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("size", [(40, 48), (300, 300)])  # the larger one is more than uvicorn reads at a time
def test_requests_of_disconnected_clients_are_not_computed(size, caplog):
    gate = GatedGraph()
    with run_server(graph=gate.graph) as server, caplog.at_level(logging.INFO):
        gate.close()
        first = start_threads(1, lambda _: server.post("/v1/classify", make_picture()))
        assert gate.entered.wait(20)
        batcher = server.model.batcher
        disconnects = []
        for index in range(3):  # each between two that stay connected
            disconnects.append(send_request(server, "/v1/classify", make_picture(form="BMP", size=size)))
            first += start_threads(1, lambda _: server.post("/v1/classify", make_picture()))
            wait_until(lambda count=2 * index + 2: len(batcher._jobs) == count)
        for disconnect in disconnects:
            disconnect()
        wait_until(lambda: len(batcher._jobs) == 3)
        assert batcher.pending == 4
        gate.open.set()
        for thread in first:
            thread.join()
        assert gate.sizes == [1, 3]
        assert count_images(server) == 4
        wait_until(lambda: server.guard.active == 0)
        assert server.post("/v1/classify", make_picture())[0] == 200
    assert sum("499" in line for line in caplog.messages) == 3
    assert not [line for line in caplog.messages if "Exception" in line]


def test_pictures_of_disconnected_clients_are_not_decoded():
    """The picture waits for a decoding thread, as all are busy."""
    busy, began = threading.Event(), threading.Semaphore(0)
    decoded = []

    def decode(content):
        began.release()
        assert busy.wait(30)
        decoded.append(content)
        return np.zeros((1, 32, 32, 3), np.uint8)

    with run_server() as server:
        server.model._decode = decode
        kept, left = make_picture(1, (300, 300)), make_picture(2, (300, 300))
        threads = start_threads(2, lambda _: server.post("/v1/classify", kept))
        assert began.acquire(timeout=20)
        assert began.acquire(timeout=20)
        disconnect = send_request(server, "/v1/classify", left)
        wait_until(lambda: server.model.batcher.pending == 3)
        disconnect()
        wait_until(lambda: server.model.batcher.pending == 2)
        busy.set()
        for thread in threads:
            thread.join()
        assert server.ask("GET", "/v2/health/ready")[0] == 200
    assert decoded == [kept, kept]


def test_pipelined_request_is_answered():
    """A client may send its next request before it has the answer."""
    gate = GatedGraph()
    with run_server(graph=gate.graph) as server:
        gate.close()
        content = make_picture()
        message = (
            f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(message)
            assert gate.entered.wait(20)
            connection.sendall(message)
            gate.open.set()
            received = b""
            while received.count(b"HTTP/1.1 200 OK") < 2:
                received += connection.recv(65536)
    assert gate.sizes == [1, 1]


def test_too_many_connections_are_503():
    with run_server(limits=Limits(max_connections=3)) as server:
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        try:
            wait_until(lambda: len(server._server.server_state.connections) == 3)
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as rejected:
                answer = b"".join(iter(lambda: rejected.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 503")
        finally:
            for connection in connections:
                connection.close()
        wait_until(lambda: not server._server.server_state.connections)
        assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_one_connection_may_be_all_that_is_allowed():
    with run_server(limits=Limits(max_connections=1)) as server:
        assert server.post("/v1/classify", make_picture())[0] == 200


def test_client_that_does_not_read_is_disconnected():
    with (
        run_server(limits=Limits(timeout=0.3, header_timeout=60)) as server,
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        connections = server._server.server_state.connections
        wait_until(lambda: connections)
        (connection,) = connections
        connection.loop.call_soon_threadsafe(connection.pause_writing)  # as asyncio does while its buffer is full
        wait_until(lambda: not connections)


def test_connections_disable_nagles_algorithm():
    with run_server() as server, socket.create_connection(("127.0.0.1", server.port)):
        connections = server._server.server_state.connections
        wait_until(lambda: connections)
        (connection,) = connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_batcher_returns_to_each_request_its_own_rows():
    """The pixels of a request are its number, and so must be its rows."""

    def answer(pixels):
        return pixels[:, 0, 0, :1].astype(np.float32)

    sizes = []
    batcher = Batcher(answer, 8, 1000, 2**20, sizes.append)

    async def request(number, count):
        with batcher.admit(count):
            rows = await batcher.run(np.full((count, 1, 1, 3), number, np.uint8))
        assert rows.shape == (count, 1)
        assert (rows == number).all()

    async def everyone():
        counts = np.random.default_rng(0).integers(1, 30, 60)
        await asyncio.gather(*(request(number, int(count)) for number, count in enumerate(counts)))
        with pytest.raises(Refused, match="overloaded"), batcher.admit(1001):
            pass
        return int(counts.sum())

    total = asyncio.run(everyone())
    batcher.stop()
    assert sum(sizes) == total
    assert max(sizes) <= 8
    assert batcher.pending == 0


@pytest.mark.parametrize(
    ("height", "counts", "batches"),
    [
        (1024, [1, 1, 2, 5, 3], [1, 3, 4, 4]),  # 2**20 pixels each: 4 are as many as a batch may have
        (1025, [1, 1, 2, 5, 3], [1, 3, 3, 2, 3]),
        (4097, [1, 1, 1], [1, 1, 1]),  # one alone is more than that
    ],
)
def test_batches_are_limited_by_their_pixels(height, counts, batches):
    entered, opened, found = threading.Event(), threading.Event(), []

    def answer(pixels):
        entered.set()
        assert opened.wait(30)
        found.append(len(pixels))
        return np.zeros((len(pixels), 1), np.float32)

    batcher = Batcher(answer, 64, 256, 2**30, lambda _: None)

    async def request(count):
        rows = await batcher.run(np.zeros((count, height, 1024, 3), np.uint8))
        assert rows.shape == (count, 1)

    async def everyone():
        first, *others = counts
        requests = [asyncio.create_task(request(first))]
        while not entered.is_set():
            await asyncio.sleep(0.001)
        requests += [asyncio.create_task(request(count)) for count in others]
        await asyncio.sleep(0)  # they are in the queue
        opened.set()
        await asyncio.gather(*requests)

    asyncio.run(everyone())
    batcher.stop()
    assert found == batches


def test_waiting_pixels_are_limited(monkeypatch):
    monkeypatch.setattr(Limits, "max_buffered", 600_000)
    gate = GatedGraph()
    graph = dataclasses.replace(gate.graph, metadata=remove_size(gate.graph.metadata))

    def make_white(side):  # a small file
        stream = io.BytesIO()
        Image.new("RGB", (side, side), "white").save(stream, "PNG")
        return stream.getvalue()

    with run_server(graph=graph) as server:
        gate.close()
        answers = []

        def classify(_):
            answers.append(server.post("/v1/classify", make_white(300))[0])

        threads = start_threads(1, classify)
        assert gate.entered.wait(20)  # so that the other picture is not in the same batch
        threads += start_threads(1, classify)
        wait_until(lambda: len(server.model.batcher._jobs) == 1)
        for content in (make_white(300), make_white(700)):
            status, headers, _ = server.ask("POST", "/v1/classify", content)
            assert (status, headers["Retry-After"]) == (503, "1")
        gate.open.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert server.post("/v1/classify", make_white(700))[0] == 200  # alone


def test_bodies_count_towards_the_limit_only_while_they_are_held(monkeypatch):
    monkeypatch.setattr(Limits, "max_buffered", 150_000)
    with run_server() as server:
        for _ in range(4):
            assert server.post("/v1/classify", bytes(60_000))[0] == 415


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.slow
def test_sigterm_answers_begun_requests_and_exits_with_0():
    with start_server() as (process, port):
        content = make_picture()
        head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(head + content[:100])
            assert ask(port, "GET", "/v2/health/ready")[0] == 200
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: ask(port, "GET", "/v2/health/ready")[0] == 503)
            status, headers, _ = ask(port, "POST", "/v1/classify", content)
            assert (status, headers["Retry-After"]) == (503, "1")
            slow.sendall(content[100:])  # a request that has begun is answered
            answer = slow.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_shutdown_obeys_the_timeout(number, status):
    with start_server("--timeout", "1") as (process, port):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as stuck:
            stuck.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n")
            time.sleep(0.2)
            process.send_signal(number)
            assert process.wait(20) == status
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(("route", "step"), [("classify", "_decode"), ("explain", "_explain")])
def test_timeout_covers_decoding_and_explaining(monkeypatch, route, step):
    release = threading.Event()
    with run_server(limits=Limits(timeout=2)) as server:
        monkeypatch.setattr(server.model, step, lambda *_: release.wait(20))
        status, headers, _ = server.ask("POST", f"/v1/{route}", make_picture(0, (300, 300)))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert server.model.batcher.pending == 0
        release.set()


def test_request_at_the_deadline_of_a_stop_is_503():
    gate = GatedGraph()
    with run_server(graph=gate.graph, limits=Limits(timeout=2)) as server, ThreadPoolExecutor(1) as client:
        server.model._limits = Limits(timeout=60)
        gate.close()
        answer = client.submit(server.ask, "POST", "/v1/classify", make_picture())
        assert gate.entered.wait(20)
        began = time.monotonic()
        server._server._stop(signal.SIGTERM, None)
        assert server._server._deadline <= time.monotonic() + 1  # the last second of the timeout is for answers
        status, headers, content = answer.result(20)
        assert 1.5 < time.monotonic() - began < 20
        assert (status, headers["Retry-After"]) == (503, "1")
        assert json.loads(content)["error"] == "the server is stopping; try again"
        gate.open.set()


def test_explanations_end_when_the_model_on_disk_changes(tmp_path):
    import onnx

    shutil.copytree(PRETRAINED / "cifar10", tmp_path / "mine")
    with run_server(graph=load_graph(tmp_path / "mine", "onnxruntime", 1)) as server:
        path, manifest = tmp_path / "mine" / "model.onnx", tmp_path / "mine" / "bundle.json"
        graph = onnx.load(path)
        graph.doc_string = "another"
        onnx.save(graph, path)
        about = json.loads(manifest.read_text("utf-8"))
        about["files"]["model.onnx"] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(about), "utf-8")
        assert server.post("/v1/classify", make_picture())[0] == 200
        status, content = server.post("/v1/explain", make_picture())
        assert status == 404
        assert content["error"].endswith("cannot explain: its files have changed since the server started")
