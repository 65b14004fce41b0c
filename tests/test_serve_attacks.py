"""Hostile requests to the server, over real sockets, and their answers."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import logging
import re
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving import make_picture, run_server
from shiftvit.errors import ShiftViTError
from shiftvit.inference.runtimes import load_graph
from shiftvit.serve import bodies
from shiftvit.serve.answers import Refused
from shiftvit.serve.guard import Access, is_loopback, parse_hosts, parse_origins
from shiftvit.serve.limits import Limits

KEY = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def server():
    with run_server(limits=Limits(max_bytes=2**20, max_pixels=10_000, header_timeout=1, timeout=2)) as found:
        yield found


@pytest.fixture(scope="module")
def locked_server():
    with run_server(access=Access(keys=("a-first-key-of-16", KEY), origins=("https://ours.example",))) as found:
        yield found


def send_raw(server, content, pause=0.0, patience=10):
    """Sends bytes unchanged, piece by piece if given a list, and returns everything that comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=patience) as line:
        with contextlib.suppress(ConnectionError):
            for piece in content if isinstance(content, list) else [content]:
                line.sendall(piece)
                time.sleep(pause)
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := line.recv(65536):
                received += part
        return received


def read_error(content):
    """Returns the message of a JSON error. Asserts that it is one line and names no path of the server."""
    message = json.loads(content)["error"]
    assert "\n" not in message
    assert "Traceback" not in message
    assert "site-packages" not in message
    assert "/src/" not in message
    return message


# Hosts and origins


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:{port}", True),
        ("localhost:{port}", True),
        ("LOCALHOST", True),
        ("[::1]:80", True),
        ("192.0.2.7", True),  # an address cannot be rebound
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@localhost", False),
        ("localhost:99999999", False),
        ("localhost:" + "9" * 5000, False),
        ("[", False),
        ("[x]", False),
        ("", False),
    ],
)
def test_hosts_that_dns_can_rebind_are_refused(server, host, allowed):
    status, _, content = server.ask("GET", "/v1/models", headers={"Host": host.format(port=server.port)})
    assert status == (200 if allowed else 400)
    assert allowed or "Host" in read_error(content)


def test_two_host_headers_are_refused(server):
    answer = send_raw(
        server, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "file://", "http://[", "http://[x]", "\xfc"]
)
def test_other_origins_may_not_post(server, origin):
    status, headers, content = server.ask("POST", "/v1/classify", make_picture(), {"Origin": origin})
    assert status == 403
    assert "origin" in read_error(content)
    assert "Access-Control-Allow-Origin" not in headers


def test_own_page_may_post(server):
    status, _, _ = server.ask("POST", "/v1/classify", make_picture(), {"Origin": server.url})
    assert status == 200


def test_no_cross_origin_headers_by_default(server):
    status, headers, _ = server.ask(
        "OPTIONS", "/v1/classify", headers={"Origin": "https://x.example", "Access-Control-Request-Method": "POST"}
    )
    assert status == 403
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_allowed_origin_may_post_after_a_preflight_request(locked_server):
    preflight = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = locked_server.ask("OPTIONS", "/v1/classify", headers=preflight)
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == "https://ours.example"
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert "Authorization" in headers["Access-Control-Allow-Headers"]
    sent = {"Origin": "https://ours.example", "Authorization": f"Bearer {KEY}"}
    status, headers, _ = locked_server.ask("POST", "/v1/classify", make_picture(), sent)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://ours.example")
    assert "Origin" in headers["Vary"]
    status, headers, _ = locked_server.ask(
        "POST", "/v1/classify", make_picture(), sent | {"Origin": "https://evil.example"}
    )
    assert status == 403
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "origin",
    ["ours.example", "ftp://a.example", "https://a.example/path", "https://", "null", "http://[", "http://[x]"],
)
def test_invalid_origins_are_refused(origin):
    with pytest.raises(ValueError, match=f"^{re.escape(origin)}$"):
        parse_origins([origin])


@pytest.mark.parametrize(
    "origin", ["https://u@a.example", "https://a.example?x", "https://a.example:65536", "https://["]
)
def test_origins_that_browsers_never_send_are_refused(origin):
    with pytest.raises(ValueError, match=re.escape(origin)):
        parse_origins([origin])


def test_origins_are_written_as_browsers_do():
    """The expected values are those of `new URL(text).origin` (WHATWG URL, section 4.7)."""
    given = {
        "HTTPS://Example.ORG:443/": "https://example.org",
        "http://example.org:80": "http://example.org",
        "http://example.org:443": "http://example.org:443",
        "https://example.org:0080": "https://example.org:80",
        "https://example.org:": "https://example.org",
        "https://[2001:DB8::1]:443": "https://[2001:db8::1]",
        "*": "*",
    }
    assert parse_origins(given) == tuple(given.values())
    access = Access(origins=parse_origins(["https://example.org:443"]))
    assert access.allows_origin("https://example.org", "server.example", "http")
    assert not access.allows_origin("http://example.org", "server.example", "http")


def test_allowed_hosts_may_have_a_port():
    access = Access(hosts=parse_hosts(["Photos.Example.org:8443", "b.example.", "::1"]))
    assert access.allows_host("photos.example.org")
    assert access.allows_host("b.example:80")
    assert not access.allows_host("example.org")


# Keys


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": "Bearer \u00fc\u00e4".encode("latin-1")}, 401),
        ({"X-API-Key": "wrong"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer {KEY}"}, 200),
        ({"X-API-Key": "a-first-key-of-16"}, 200),
    ],
)
def test_every_route_needs_a_valid_key(locked_server, headers, status):
    for method, path, body in (
        ("POST", "/v1/classify", make_picture()),
        ("POST", "/", make_picture()),
        ("GET", "/v1/models", None),
        ("GET", "/v2/models/cifar10", None),
        ("GET", "/metrics", None),
        ("GET", "/openapi.json", None),
    ):
        found, answered, content = locked_server.ask(method, path, body, headers)
        assert found == status, path
        if status == 401:
            assert answered["WWW-Authenticate"] == "Bearer"
            assert KEY not in read_error(content)


def test_health_checks_and_the_page_need_no_key(locked_server):
    for path in ("/", "/v2/health/live", "/v2/health/ready"):
        assert locked_server.ask("GET", path)[0] == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False),
     ("192.0.2.1", False), ("myhost", False)],
)  # fmt: skip
def test_loopback_addresses_are_recognised(host, loopback):
    assert is_loopback(host) is loopback


# Bodies


def test_body_is_limited_whatever_size_it_declares(server):
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = send_raw(server, [head, *[chunk] * 20, b"0\r\n\r\n"])
    assert b" 413 " in answer.split(b"\r\n")[0]
    status, content = server.post("/v1/classify", bytes(2**20 + 1))
    assert (status, list(content)) == (413, ["error"])


def test_body_without_an_end_is_refused():
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with run_server(limits=Limits(max_bytes=1000)) as server:
        answer = send_raw(server, head + b"1388\r\n" + bytes(5000) + b"\r\n")  # more than is read and dropped
    assert answer.startswith(b"HTTP/1.1 413")


def test_client_that_waits_for_status_100_is_refused_at_once(server):
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    answer = send_raw(server, head + b"Content-Length: %d\r\n\r\n" % (server.limits.max_bytes + 1))
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "1e3", "999999999999999999999999", "0x10", "5, 6", "+5"])
def test_invalid_content_lengths_are_refused(server, length):
    answer = send_raw(
        server, f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\nabcde".encode()
    )
    assert answer.split(b" ")[1] in (b"400", b"413")
    read_error(answer.partition(b"\r\n\r\n")[2])


def test_request_smuggling_is_refused(server):
    second = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = send_raw(server, head + b"0\r\n\r\n" + second)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"shiftvit_requests" not in answer


def make_bomb(side):
    """Returns a PNG of side x side black pixels, which is a small file."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_decompression_bomb_is_refused(server):
    status, content = server.post("/v1/classify", make_bomb(8000))
    assert status == 413
    assert "max_pixels=10,000" in content["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"/etc/passwd",
        b"http://localhost/cat.png",
        b"http://localhost/cats.jpeg",  # base64, if other characters were left out
        b"file:///etc/passwd",
        b"../secret.png",
    ],
)
def test_paths_and_addresses_are_never_opened(server, body):
    status, content = server.post("/v1/classify", body)
    assert status == 415
    assert "passwd" not in content["error"]
    status, content = server.post(
        "/v1/classify", json.dumps({"inputs": body.decode()}), {"Content-Type": "application/json"}
    )
    assert status == 422
    assert "URLs are never fetched" in content["error"]


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"inputs":' * 1000 + "1" + "}" * 1000,
        '{"inputs": NaN}',
        '{"inputs": "aGk=", "inputs": "aGk="}',
        '{"inputs": ' + "9" * 5000 + "}",
        '{"inputs": 1e999}',
        '{"inputs": "aGk=", "parameters": {"top_k": 1e300}}',
        '{"inputs": "aGk=", "parameters": {"top_k": -1}}',
        '{"inputs": "aGk=", "parameters": {"top_k": true}}',
        '{"inputs": "aGk=", "parameters": []}',
        '{"inputs": ["aGk="]}',
        '{"inputs": "no base64!"}',
        '{"inputs": "\\u0000"}',
        "null",
        '"text"',
        "{}",
        "{",
        "\ufeff{}",
    ],
)
def test_hostile_json_gets_a_one_line_error(server, body):
    status, _, content = server.ask("POST", "/v1/classify", body.encode(), {"Content-Type": "application/json"})
    assert status in (400, 415, 422)
    read_error(content)
    assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_json_that_is_not_utf8_is_refused(server):
    status, _, content = server.ask("POST", "/v1/classify", b'{"a": "\xff"}', {"Content-Type": "application/json"})
    assert status == 400
    read_error(content)


INPUT = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3]}


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"inputs": []},
        {"inputs": [1]},
        {"inputs": [INPUT, INPUT]},
        {"inputs": [INPUT]},
        {"inputs": [INPUT | {"data": []}]},
        {"inputs": [INPUT | {"data": [0] * 3071}]},
        {"inputs": [INPUT | {"data": [256] * 3072}]},
        {"inputs": [INPUT | {"data": [-1] * 3072}]},
        {"inputs": [INPUT | {"data": [0.5] * 3072}]},
        {"inputs": [INPUT | {"data": ["0"] * 3072}]},
        {"inputs": [INPUT | {"data": [True] * 3072}]},
        {"inputs": [INPUT | {"data": [[0] * 3072]}]},
        {"inputs": [INPUT | {"data": [[0], 1]}]},
        {"inputs": [INPUT | {"data": [0] * 3071 + [True]}]},
        {"inputs": [INPUT | {"data": {"0": 0}}]},
        {"inputs": [INPUT | {"data": "0" * 3072}]},
        {"inputs": [INPUT | {"data": [2**63 - 1] * 3072}]},
        {"inputs": [INPUT | {"data": [[[[0, 0, 0]] * 32] * 31 + [[[0, 0, 0]] * 31]]}]},
        {"inputs": [INPUT | {"data": [[[[0, 0, 0]] * 32] * 31 + ["0" * 32]]}]},
        {"inputs": [INPUT | {"data": [[[[0, 0, 0]] * 32] * 31 + [[[0, 0, 0]] * 31 + [[0, 0, 0.0]]]]}]},
        {"inputs": [INPUT | {"data": [[[[0, 0, True]] * 32] * 32]}]},
        {"inputs": [INPUT | {"shape": [0, 32, 32, 3], "data": []}]},
        {"inputs": [INPUT | {"shape": [10**18, 32, 32, 3], "data": [0]}]},
        {"inputs": [INPUT | {"shape": [True, 32, 32, 3], "data": [0] * 3072}]},
        {"inputs": [INPUT | {"shape": "1", "data": [0]}]},
        {"inputs": [INPUT | {"name": "pixels", "data": [0] * 3072}]},
        {"inputs": [INPUT | {"datatype": "BYTES", "data": ["/etc/passwd"]}]},
        {"inputs": [INPUT | {"parameters": {"binary_data_size": 3072}}]},
        {"inputs": [INPUT | {"parameters": {"shared_memory_region": "x"}}]},
        {"inputs": [INPUT | {"data": [0] * 3072}], "outputs": [{"name": "weights"}]},
        {"inputs": [INPUT | {"data": [0] * 3072}], "outputs": {}},
    ],
)
def test_hostile_tensors_are_refused(server, tree):
    status, content = server.post("/v2/models/cifar10/infer", json.dumps(tree))
    assert status in (413, 422)
    assert list(content) == ["error"]


@pytest.mark.parametrize("nested", [False, True])
def test_texts_as_pixels_take_no_memory(server, nested):
    """In an array, each text of the list would take as much as the longest: 123 MB here."""
    data = ["a" * 10_000] + [""] * 3071
    if nested:
        data = np.array(data, object).reshape(1, 32, 32, 3).tolist()
    tracemalloc.start()
    try:
        status, content = server.post("/v2/models/cifar10/infer", json.dumps({"inputs": [INPUT | {"data": data}]}))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert status == 422
    assert "whole numbers from 0 to 255" in content["error"]
    assert most < 10 * 2**20


@pytest.mark.parametrize("nested", [False, True])
def test_lists_of_numbers_become_their_pixels(server, nested):
    pixels = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    data = pixels.tolist() if nested else pixels.ravel().tolist()
    status, content = server.post(
        "/v2/models/cifar10/infer", json.dumps({"inputs": [INPUT | {"shape": [2, 32, 32, 3], "data": data}]})
    )
    assert status == 200
    assert content["outputs"][0]["data"] == server.model.graph.run(pixels).ravel().tolist()


@pytest.mark.parametrize("length", ["-1", "0", "9999999", "x", "1e2", "", "9" * 5000, "0" * 5000 + "123"])
def test_invalid_lengths_of_the_binary_header_are_refused(server, length):
    body = json.dumps({"inputs": [INPUT | {"parameters": {"binary_data_size": 3072}}]}).encode() + bytes(3072)
    status, content = server.post("/v2/models/cifar10/infer", body, {"Inference-Header-Content-Length": length})
    assert status == 400
    assert "Inference-Header-Content-Length".lower() in content["error"].lower()


# Request heads and slow clients


def test_size_of_a_request_head_is_limited(server):
    for head in (b"X: " + b"a" * 20_000, b"\r\n".join(b"X%d: y" % number for number in range(3000))):
        answer = send_raw(
            server, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + head + b"\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 400")
        read_error(answer.partition(b"\r\n\r\n")[2])


def test_long_paths_are_cut_in_the_log(caplog):
    with run_server() as server, caplog.at_level(logging.INFO):
        server.ask("GET", "/" + "a" * 5000)
    (line,) = [line for line in caplog.messages if "/aaa" in line]
    assert len(line) < 300


@pytest.mark.parametrize("line", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\x00" * 99])
def test_bytes_that_are_not_http_get_a_json_error(server, line):
    answer = send_raw(server, line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    read_error(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.slow
def test_slow_clients_are_disconnected(server):
    """A client is silent, sends its head slowly, or sends its body slowly. Each case has its own deadline."""
    sent = {
        "silent": [],
        "head": [b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 40],
        "body": [b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n", *[b"x"] * 60],
    }
    found = {}

    def send(name):
        began = time.monotonic()
        answer = send_raw(server, sent[name], pause=0.1)
        found[name] = time.monotonic() - began, answer

    threads = [threading.Thread(target=send, args=(name,)) for name in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["silent"][1] == b""
    assert found["body"][1].startswith(b"HTTP/1.1 408")
    read_error(found["body"][1].partition(b"\r\n\r\n")[2])
    assert found["head"][1][:12] in (b"", b"HTTP/1.1 408")  # the answer is lost if the client still writes
    assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_static_files_stay_within_their_ranges_and_folder(server):
    sample = json.loads(server.ask("GET", "/v1/samples")[2])[0]
    whole = server.ask("GET", sample)[2]
    status, _, part = server.ask("GET", sample, headers={"Range": "bytes=2-5"})
    assert (status, part) == (206, whole[2:6])
    for ranges in ("bytes=99999999-", "bytes=5-2", "bytes=" + ",".join(f"{at}-{at}" for at in range(500)), "bits=0-1"):
        status, _, content = server.ask("GET", sample, headers={"Range": ranges})
        assert status in (200, 206, 400, 416)
        assert len(content) < 4 * len(whole) + 100_000
    for path in ("/page/../guard.py", "/page/%2e%2e/guard.py", "/samples/..%2f..%2fbundle.json", "/page//etc/passwd"):
        assert server.ask("GET", path)[0] == 404


def test_security_headers_on_every_answer(server):
    for path in ("/", "/v1/models", "/nothing", "/page/nothing"):
        headers = server.ask("GET", path)[1]
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "Server" not in headers
    assert server.ask("GET", "/docs")[0] == 404


# Models


def make_graph(answer, labels=None):
    graph = load_graph("cifar10", "onnxruntime", 1)
    if labels:
        graph = dataclasses.replace(graph, metadata=graph.metadata.model_copy(update={"labels": labels}))
    return dataclasses.replace(graph, run=answer or graph.run)


def test_labels_with_markup_or_control_characters_are_escaped():
    labels = ("<script>alert(1)</script>", "\x1b[31mred", "a\r\nSet-Cookie: x", "\u2028", "日本", *"fghij")
    with run_server(graph=make_graph(None, labels)) as server:
        status, headers, content = server.ask("POST", "/v1/classify?top_k=10", make_picture())
        assert status == 200
        assert content.isascii()
        assert b"\x1b" not in content
        assert {row["label"] for row in json.loads(content)} == set(labels)
        assert "Set-Cookie" not in headers


def test_nan_output_is_a_server_error():
    with run_server(graph=make_graph(lambda pixels: np.full((len(pixels), 10), np.nan, np.float32))) as server:
        status, content = server.post("/v1/classify", make_picture())
        assert status == 500
        assert "returned NaN or infinity" in content["error"]


def test_failing_model_fails_only_its_own_request():
    calls = iter([None, RuntimeError("/srv/secret/model.onnx broke")])

    def answer(pixels):
        fault = next(calls, None)
        if fault:
            raise fault
        return np.full((len(pixels), 10), 0.1, np.float32)

    with run_server(graph=make_graph(answer)) as server:
        status, _, content = server.ask("POST", "/v1/classify", make_picture())
        assert status == 500
        assert "secret" not in read_error(content)
        assert server.post("/v1/classify", make_picture())[0] == 200


def test_bad_picture_fails_only_its_own_request(server):
    answers = {}

    def ask(index):
        answers[index] = server.post("/v1/classify", make_picture(index)[: None if index % 2 else 300])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[index][0] for index in range(12)] == [422, 200] * 6


@pytest.mark.parametrize("name", ["max_batch", "queue", "max_bytes", "timeout"])
def test_limits_must_be_positive(name):
    with pytest.raises(ShiftViTError, match=f"{name}=0 must be more than 0"):
        Limits(**{name: 0})


@pytest.mark.parametrize(
    ("side", "chosen", "batch"), [(32, None, 64), (64, None, 64), (224, None, 5), (4096, None, 1), (224, 32, 32)]
)
def test_batches_of_large_images_are_small_by_default(side, chosen, batch):
    assert Limits(max_batch=chosen).choose_batch_size(side, side) == batch


@pytest.mark.slow
def test_large_json_does_not_block_other_requests():
    body = json.dumps({"inputs": [INPUT | {"data": [200] * 3_400_000}]}).encode()
    assert len(body) > 16 * 2**20
    with run_server() as server:
        found = []
        thread = threading.Thread(target=lambda: found.append(server.post("/v2/models/cifar10/infer", body)[0]))
        thread.start()
        answered = 0
        while thread.is_alive():
            assert server.ask("GET", "/v2/health/ready", timeout=5)[0] == 200
            answered += 1
        assert found == [422]
        # A time limit would depend on the machine, so count the requests that were answered while the body was parsed.
        assert answered >= 20


def test_base64_gets_the_same_answer_as_the_bytes(server):
    content = make_picture(8)
    text = base64.b64encode(content).decode()
    assert server.post(
        "/v1/classify", json.dumps({"inputs": text}), {"Content-Type": "application/json"}
    ) == server.post("/v1/classify", io.BytesIO(content).getvalue())


def test_json_of_many_objects_is_refused(server):
    body = json.dumps({"inputs": [{}] * 2000})
    for route in ("/v1/classify", "/v2/models/cifar10/infer"):
        status, content = server.post(route, body, {"Content-Type": "application/json"})
        assert (status, content["error"]) == (400, "the JSON has more than 1,000 objects; send fewer")


def test_json_may_nest_16_levels():
    def parse(levels):
        return asyncio.run(bodies.parse_json(b'{"a":' * levels + b"0" + b"}" * levels))

    assert parse(16)
    with pytest.raises(Refused, match="nests more than 16 levels deep"):
        parse(17)


def test_few_large_json_bodies_are_parsed_at_once(monkeypatch):
    running, most, wanted, parse = 0, 0, 2, bodies._parse
    changed = threading.Condition()

    def count(content):
        nonlocal running, most
        with changed:
            running += 1
            most = max(most, running)
            changed.notify_all()
            assert changed.wait_for(lambda: most >= wanted, 20)
        time.sleep(0.05)  # for others that might begin too
        with changed:
            running -= 1
        return parse(content)

    monkeypatch.setattr(bodies, "_parse", count)
    large = json.dumps({"inputs": [INPUT | {"data": [0] * 100_000}]})
    assert len(large) > bodies._SMALL
    with run_server() as server, ThreadPoolExecutor(8) as clients:
        statuses = list(clients.map(lambda _: server.post("/v2/models/cifar10/infer", large)[0], range(8)))
        assert (statuses, most) == ([422] * 8, 2)
        most, wanted = 0, 3
        list(clients.map(lambda _: server.post("/v2/models/cifar10/infer", "{}")[0], range(8)))
        assert most >= 3


@pytest.mark.parametrize(("form", "small"), [("PNG", True), ("WEBP", True), ("AVIF", False)])
def test_decoders_that_may_decode_more_than_declared_run_in_a_thread(server, form, small):
    content = make_picture(0, (40, 48), form)
    assert (server.model._decode_small(content) is not None) == small
    assert server.post("/v1/classify", content)[0] == 200
