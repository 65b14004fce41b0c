"""The command `shiftvit serve`: its start, and errors before it listens."""

import asyncio
import io
import json
import logging
import os
import re
import shlex
import socket
import urllib.request
from pathlib import Path

import pytest
import typer

from serving import ask, make_picture, start_server
from shiftvit.cli.main import _run, app
from shiftvit.serve.log import JoiningHandler

ROOT = Path(__file__).parents[1]
KEY = "0123456789abcdef0123456789abcdef"


def get_error(capsys, *arguments):
    """Runs `shiftvit serve`, which must fail with one line, and returns that line."""
    assert _run(["serve", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--host", "::"], "--api-key-file"),
        (["--host", "192.0.2.1"], "--api-key-file"),
        (["--log-format", "xml"], "valid: json, text"),
        (["--allow-origin", "example.org"], "is not a web origin"),
        (["--allow-host", "https://example.org"], "is not a host name"),
        (["--api-key-file", "nothing.txt"], "nothing.txt"),
        (["nothing"], "does not exist"),
        (["cifar10", "cifar10"], "would both be called 'cifar10'"),
        (["a/b=cifar10"], "cannot be part of a URL"),
        (["--port", "70000"], "70000"),
        (["--queue", "0"], "queue"),
        (["--timeout", "0"], "timeout"),
        (["--threads", "0"], "threads"),
        (["--runtime", "nothing"], "there is no runtime"),
    ],
)
def test_invalid_arguments_fail_with_one_line(capsys, arguments, message):
    port = [] if "--port" in arguments else ["--port", "0"]
    assert message in get_error(capsys, *port, *arguments)


def test_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in get_error(capsys, "--port", port)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "\udcff"])  # the last is what Python makes of the byte 255
def test_host_that_is_no_name_is_named(capsys, tmp_path, host):
    keys = tmp_path / "keys.txt"
    keys.write_text(KEY)
    keys.chmod(0o600)
    message = get_error(capsys, "--port", "0", "--host", host, "--api-key-file", str(keys))
    assert f"--host {host!r} is not a host name" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no API key"),
        (b"\n# only a comment\n", "holds no API key"),
        (b"short\n", "fewer than 16"),
        ("schlüsselschlüssel\n".encode(), "ASCII"),
        (b"two words in a key that is long\n", "ASCII"),
        (b"\xff\xfe\n", "UTF-8"),
    ],
)
def test_unusable_api_keys_fail(capsys, tmp_path, content, message):
    keys = tmp_path / "keys.txt"
    keys.write_bytes(content)
    assert message in get_error(capsys, "--api-key-file", str(keys))


def test_documented_commands_parse():
    """The options exist and take the documented values."""
    command = typer.main.get_command(app).commands["serve"]
    texts = [(ROOT / name).read_text("utf-8") for name in ("README.md", "docs/serving.md")]
    lines = re.findall(r"^(?:    |ExecStart=\S*/)shiftvit serve(.*)$", "\n".join(texts), flags=re.MULTILINE)
    (container,) = re.findall(r"^CMD (\[.*\])$", texts[1], flags=re.MULTILINE)
    assert len(lines) >= 6
    for arguments in [*(shlex.split(line, comments=True) for line in lines), json.loads(container)[2:]]:
        assert command.make_context("serve", arguments).params


@pytest.mark.slow
def test_serves_several_models_and_checks_keys(tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"# ours\n{KEY}\n")
    keys.chmod(0o600)
    arguments = ["cifar10", "other=cifar10", "--host", "127.0.0.1", "--api-key-file", str(keys), "--log-format", "json"]
    with start_server(*arguments) as (process, port):
        assert ask(port, "POST", "/v1/classify", make_picture())[0] == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        names = [model["name"] for model in json.loads(ask(port, "GET", "/v1/models", headers=headers)[2])]
        assert names == ["cifar10", "other"]
        for name in names:
            status, _, content = ask(port, "POST", f"/v1/models/{name}/classify", make_picture(), headers)
            assert status == 200
            assert len(json.loads(content)) == 5
        entries = [json.loads(process.stderr.readline()) for _ in range(4)]
        assert [entry["status"] for entry in entries] == [401, 200, 200, 200]
        assert KEY not in json.dumps(entries)
        # A client cannot forge a line of the log through its address.
        ask(port, "GET", "/nothing%0a%1b%5b31m", headers=headers)
        entry = json.loads(process.stderr.readline())
        assert (entry["status"], entry["path"]) == (404, "/nothing%0a%1b%5b31m")


def test_log_lines_of_one_loop_iteration_are_one_write(monkeypatch):
    written = []

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    monkeypatch.setattr("sys.stderr", Stream())
    handler = JoiningHandler()

    def log(*lines):
        for line in lines:
            handler.handle(logging.makeLogRecord({"msg": "%s", "args": (line,)}))

    async def serve():
        log("100 %s", "b")
        assert not written
        await asyncio.sleep(0)
        assert written == ["100 %s\nb\n"]
        log("c")
        handler.flush()  # as when the process ends
        assert written[-1] == "c\n"
        log("d", "e")

    asyncio.run(serve())
    log("f")  # without an event loop
    assert "".join(written) == "100 %s\nb\nc\nd\ne\nf\n"


@pytest.mark.slow
def test_other_host_names_must_be_allowed():
    """A web page can point a host name of its own at this server (DNS rebinding)."""
    with start_server("--allow-host", "photos.example") as (_, port):
        assert ask(port, "GET", "/v1/models", headers={"Host": "photos.example"})[0] == 200
        assert ask(port, "GET", "/v1/models", headers={"Host": "other.example"})[0] == 400
        with urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready", timeout=10) as answer:
            assert answer.status == 200


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_key_file_readable_by_others_is_reported(tmp_path, capsys):
    keys = tmp_path / "keys.txt"
    keys.write_text(KEY)
    keys.chmod(0o644)
    assert _run(["serve", "nothing", "--port", "0", "--api-key-file", str(keys)]) == 2
    assert "chmod 600" in capsys.readouterr().err
