"""A fake Hugging Face Hub that answers the requests of `huggingface_hub` over real HTTP.

The URLs and fields are those in the client's own code (`hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`).
The client must understand the answers, which keeps the fake faithful to the real Hub.
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
    """A repository. Each commit maps file names to contents; the newest commit is the last."""

    private: bool = False
    sdk: str | None = None  # of a Space
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.onnx filter=lfs\n"}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])
    tags: dict[str, int] = field(default_factory=dict)

    def find_commit(self, revision: str) -> int | None:
        """Returns the index of a commit by branch, tag or hash."""
        indices = {"main": len(self.commits) - 1, **self.tags}
        indices |= {make_sha(index): index for index in range(len(self.commits))}
        return indices.get(revision)


@dataclass
class Hub:
    """The content of the server and the faults that it simulates."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)  # names of Spaces begin with "spaces/"
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    requests: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)  # tokens that were sent to another host
    listed: dict[str, int | None] = field(default_factory=dict)  # extra files in the listing, with their sizes
    tampered: dict[str, bytes] = field(default_factory=dict)  # contents served in place of the stored ones
    failing: dict[str, int] = field(default_factory=dict)  # part of a path -> status of the answer
    meanwhile: dict[str, bytes] = field(default_factory=dict)  # files that another user pushes right after a listing
    held: threading.Event = field(default_factory=threading.Event)  # while cleared, only half of a large file is sent
    half: threading.Event = field(default_factory=threading.Event)  # set once half of a large file has been sent

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name].commits[-1]


def make_sha(index: int) -> str:
    return hashlib.sha1(str(index).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement
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
        for part, status in self.hub.failing.items():
            if part in path:
                return self.send_answer(status, {"error": "simulated fault"})
        routes = {
            r"POST /api/repos/create": self.create_repository,
            r"POST /api/validate-yaml": self.validate_card,
            r"GET /api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)(?:/revision/(.+))?": self.send_info,
            r"POST /api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)/preupload/(.+)": self.send_upload_modes,
            r"POST /((?:spaces/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch": self.send_upload_urls,
            r"PUT /objects/(\w+)": self.store_object,
            r"POST /api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)/commit/(.+)": self.add_commit,
            r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.send_file,
            r"(?:GET|HEAD) /cdn/(\w+)": self.send_object,
        }
        for pattern, handle in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return handle(body, *found.groups())
        return self.send_answer(404, {"error": "no such page"})

    def send_answer(self, status: int, content: Any = b"", **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    @property
    def is_authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_write_access(self, name: str) -> bool:
        """Returns whether the token may write to a repository. If not, sends the error."""
        owner = name.removeprefix("spaces/").split("/")[0]
        if not self.is_authorized:
            self.send_answer(401, {"error": "Invalid username or password."})
        elif owner not in OWNERS:
            self.send_answer(403, {"error": "You don't have the rights"}, X_Error_Message="You don't have the rights")
        return self.is_authorized and owner in OWNERS

    def find_repository(self, name: str) -> Repository | None:
        """Returns a repository, or sends an error. Without the token, a private repository looks like a missing one."""
        found = self.hub.repositories.get(name)
        if "Authorization" in self.headers and not self.is_authorized:
            message = "Invalid credentials in Authorization header"
            self.send_answer(401, {"error": message}, X_Error_Message=message)
        elif found is None or (found.private and not self.is_authorized):
            self.send_answer(
                404 if self.is_authorized else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound"
            )
        else:
            return found
        return None

    def create_repository(self, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        if request.get("type") == "space":
            name = f"spaces/{name}"
        if self.check_write_access(name):
            exists = name in self.hub.repositories
            if not exists:
                self.hub.repositories[name] = Repository(request.get("visibility") == "private", request.get("sdk"))
            self.send_answer(409 if exists else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate_card(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            tree = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:
            return self.send_answer(400, {"errors": [{"message": "no YAML"}], "warnings": []})
        warnings = [] if isinstance(tree, dict) else [{"message": "empty or missing yaml metadata"}]
        return self.send_answer(200, {"errors": [], "warnings": warnings})

    def send_info(self, _: bytes, name: str, revision: str | None) -> None:
        repository = self.find_repository(name)
        if repository is None:
            return None
        index = repository.find_commit(revision or "main")
        if index is None:
            return self.send_answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        sizes = {path: len(content) for path, content in repository.commits[index].items()} | self.hub.listed
        siblings = [
            {"rfilename": path} | ({"size": size} if "blobs" in self.path else {}) for path, size in sizes.items()
        ]
        if self.hub.meanwhile and "blobs" in self.path:
            repository.commits.append(repository.commits[-1] | self.hub.meanwhile)
        tree = {"id": name, "sha": make_sha(index), "private": repository.private, "siblings": siblings}
        tree |= {"sdk": repository.sdk} if repository.sdk else {}
        return self.send_answer(200, {**tree, "tags": [], "downloads": 0})

    def send_upload_modes(self, body: bytes, name: str, _: str) -> None:
        if self.check_write_access(name):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
                for path in paths
            ]
            self.send_answer(200, {"files": modes})

    def send_upload_urls(self, body: bytes, name: str) -> None:
        if self.check_write_access(name):
            rows = [
                file | {"actions": {"upload": {"href": f"{self.hub.url}/objects/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            self.send_answer(200, {"transfer": "basic", "objects": rows})

    def store_object(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.send_answer(200)

    def add_commit(self, body: bytes, name: str, _: str) -> None:
        if not self.check_write_access(name):
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
        self.send_answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def send_file(self, _: bytes, name: str, revision: str, path: str) -> None:
        repository = self.find_repository(name)
        if repository is None:
            return None
        index = repository.find_commit(revision)
        content = None if index is None else repository.commits[index].get(path)
        if content is None:
            return self.send_answer(404, X_Error_Code="EntryNotFound")
        content = self.hub.tampered.get(path, content)
        oid = hashlib.sha256(content).hexdigest()
        headers = {"X_Repo_Commit": make_sha(index or 0), "ETag": f'"{oid}"'}
        if not path.endswith(LARGE):
            return self.send_answer(200, content, **headers)
        self.hub.objects[oid] = content
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
        other_host = self.hub.url.replace("127.0.0.1", "localhost")  # the Hub keeps large files on another host
        return self.send_answer(302, Location=f"{other_host}/cdn/{oid}", **headers, **linked)

    def send_object(self, _: bytes, oid: str) -> None:
        self.hub.leaks += ["Authorization"] if "Authorization" in self.headers else []  # only the Hub may get the token
        content = self.hub.objects[oid]
        if self.command == "HEAD" or self.hub.held.is_set():
            return self.send_answer(200, content)
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
    """Runs a fake Hub on this machine."""
    hub = Hub()
    hub.held.set()
    with listen(type("Bound", (Handler,), {"hub": hub})) as hub.url:
        try:
            yield hub
        finally:
            hub.held.set()
