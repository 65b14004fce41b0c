"""A stand-in for the Hugging Face Hub: the answers that `huggingface_hub` asks for, over real HTTP.

The addresses and fields are those in the client's own code (`hf_api.py`, `_commit_api.py`, `lfs.py`,
`file_download.py`). The client must understand the answers, which keeps this stand-in faithful.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from file_server import listen

TOKEN = "hf_" + "secret" * 4
OWNERS = {"me", "us"}  # the owners to which the token may write
LARGE = (".safetensors", ".onnx")


@dataclass
class Repository:
    """Commits, newest last, each from file name to content."""

    private: bool = False
    sdk: str | None = None  # of a Space
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.onnx filter=lfs\n"}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])
    tags: dict[str, int] = field(default_factory=dict)

    def commit(self, revision: str) -> int | None:
        """Returns the index of a commit by branch, tag or hash."""
        named = {"main": len(self.commits) - 1, **self.tags}
        named |= {make_sha(index): index for index in range(len(self.commits))}
        return named.get(revision)


@dataclass
class Hub:
    """The content of the server, and the faults that it must show."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)  # a Space's name begins with "spaces/"
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    requests: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)  # tokens that were sent to another host
    listed: dict[str, int | None] = field(default_factory=dict)  # further files in the listing, with sizes
    tampered: dict[str, bytes] = field(default_factory=dict)  # contents that are served instead of a file's own
    failing: dict[str, int] = field(default_factory=dict)  # a part of an address -> the status of its answer
    meanwhile: dict[str, bytes] = field(default_factory=dict)  # files that another user pushes right after a listing
    held: threading.Event = field(default_factory=threading.Event)  # while cleared, half of a large file is sent
    half: threading.Event = field(default_factory=threading.Event)  # half of one is sent

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name].commits[-1]


def make_sha(index: int) -> str:
    return hashlib.sha1(str(index).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_PUT = do_POST

    def do_GET(self) -> None:
        self.answer(b"")

    do_HEAD = do_GET

    def answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for piece, status in self.hub.failing.items():
            if piece in path:
                return self.say(status, {"error": "as told"})
        routes = {
            r"POST /api/repos/create": self.create,
            r"POST /api/validate-yaml": self.validate,
            r"GET /api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)(?:/revision/(.+))?": self.info,
            r"POST /api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)/preupload/(.+)": self.preupload,
            r"POST /((?:spaces/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"PUT /objects/(\w+)": self.store,
            r"POST /api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)/commit/(.+)": self.commit,
            r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
            r"(?:GET|HEAD) /cdn/(\w+)": self.cdn,
        }
        for pattern, act in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return act(body, *found.groups())
        return self.say(404, {"error": "no such page"})

    def say(self, status: int, content: Any = b"", **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def allowed(self, name: str) -> bool:
        """Returns whether the token may write to a repository; if not, answers with the error."""
        owner = name.removeprefix("spaces/").split("/")[0]
        if not self.known:
            self.say(401, {"error": "Invalid username or password."})
        elif owner not in OWNERS:
            self.say(403, {"error": "You don't have the rights"}, X_Error_Message="You don't have the rights")
        return self.known and owner in OWNERS

    def visible(self, name: str) -> Repository | None:
        """Returns a repository, or answers that there is none. To strangers, private ones look like missing ones."""
        found = self.hub.repositories.get(name)
        if "Authorization" in self.headers and not self.known:
            message = "Invalid credentials in Authorization header"
            self.say(401, {"error": message}, X_Error_Message=message)
        elif found is None or (found.private and not self.known):
            self.say(404 if self.known else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        else:
            return found
        return None

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked.get("type") == "space":
            name = f"spaces/{name}"
        if self.allowed(name):
            there = name in self.hub.repositories
            if not there:
                self.hub.repositories[name] = Repository(asked.get("visibility") == "private", asked.get("sdk"))
            self.say(409 if there else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            tree = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:
            return self.say(400, {"errors": [{"message": "no YAML"}], "warnings": []})
        warnings = [] if isinstance(tree, dict) else [{"message": "empty or missing yaml metadata"}]
        return self.say(200, {"errors": [], "warnings": warnings})

    def info(self, _: bytes, name: str, revision: str | None) -> None:
        repository = self.visible(name)
        if repository is None:
            return None
        index = repository.commit(revision or "main")
        if index is None:
            return self.say(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        sizes = {path: len(content) for path, content in repository.commits[index].items()} | self.hub.listed
        siblings = [
            {"rfilename": path} | ({"size": size} if "blobs" in self.path else {}) for path, size in sizes.items()
        ]
        if self.hub.meanwhile and "blobs" in self.path:
            repository.commits.append(repository.commits[-1] | self.hub.meanwhile)
        tree = {"id": name, "sha": make_sha(index), "private": repository.private, "siblings": siblings}
        tree |= {"sdk": repository.sdk} if repository.sdk else {}
        return self.say(200, {**tree, "tags": [], "downloads": 0})

    def preupload(self, body: bytes, name: str, _: str) -> None:
        if self.allowed(name):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
                for path in paths
            ]
            self.say(200, {"files": modes})

    def batch(self, body: bytes, name: str) -> None:
        if self.allowed(name):
            rows = [
                file | {"actions": {"upload": {"href": f"{self.hub.url}/objects/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            self.say(200, {"transfer": "basic", "objects": rows})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.say(200)

    def commit(self, body: bytes, name: str, _: str) -> None:
        if not self.allowed(name):
            return
        repository = self.hub.repositories[name]
        files = dict(repository.commits[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    repository.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        repository.commits.append(files)
        oid = make_sha(len(repository.commits) - 1)
        self.say(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        repository = self.visible(name)
        if repository is None:
            return None
        index = repository.commit(revision)
        content = None if index is None else repository.commits[index].get(path)
        if content is None:
            return self.say(404, X_Error_Code="EntryNotFound")
        content = self.hub.tampered.get(path, content)
        oid = hashlib.sha256(content).hexdigest()
        headers = {"X_Repo_Commit": make_sha(index or 0), "ETag": f'"{oid}"'}
        if not path.endswith(LARGE):
            return self.say(200, content, **headers)
        self.hub.objects[oid] = content
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, as the Hub's large files have
        return self.say(302, Location=f"{elsewhere}/cdn/{oid}", **headers, **linked)

    def cdn(self, _: bytes, oid: str) -> None:
        self.hub.leaks += ["Authorization"] if "Authorization" in self.headers else []  # it is the Hub's alone
        content = self.hub.objects[oid]
        if self.command == "HEAD" or self.hub.held.is_set():
            return self.say(200, content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.hub.half.set()
        self.hub.held.wait(20)
        self.close_connection = True
        return None


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub on this machine."""
    hub = Hub()
    hub.held.set()
    with listen(type("Bound", (Handler,), {"hub": hub})) as hub.url:
        try:
            yield hub
        finally:
            hub.held.set()
