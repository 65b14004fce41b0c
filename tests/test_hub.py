"""Pushing and pulling, against a stand-in of the Hub over real HTTP: all files or none, and errors in one line."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import close_session

from hub_world import TOKEN, Hub, Repository, make_sha, serve_hub
from shiftvit import Bundle, Preprocess, ShiftViTError
from shiftvit.bundle.hub import pull, push, push_space
from shiftvit.bundle.stored.manifest import CARD, GRAPH, MANIFEST, WEIGHTS
from shiftvit.cli.main import _run
from shiftvit.config import ModelConfig
from shiftvit.serve.demo import _RUNTIME_FILES, _rename_runtime_file, read_space_files

# The client sends large files through an argument that its own network library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    config = ModelConfig(image_shape=(16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1))
    values = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    weights = {"head/kernel": values, "head/bias": values[0]}  # whether they fit is asked when a model is built
    return Bundle(config, ("cat", "dog", "ship"), Preprocess(std=64.0), weights, {"test": {"top1": 0.5, "n": 20}})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client in this process takes for the Hub, and a folder to work in."""
    with serve_hub() as running:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            monkeypatch.delenv(name)
        # Read from the environment when the client is imported, which other tests may have done.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "home" / "stored"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "home" / "harnesses.json"), raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield running
        close_session()
        assert not running.leaks


def one_line(caught: pytest.ExceptionInfo[ShiftViTError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    return text


def here() -> list[str]:
    return sorted(entry.name for entry in Path().iterdir())


def assert_same(found: Bundle, expected: Bundle) -> None:
    """The same model to the last bit; the card says besides where it lies."""
    plain = {"weights": {}, "card": None}
    assert dataclasses.replace(found, **plain) == dataclasses.replace(expected, **plain)
    assert found.weights.keys() == expected.weights.keys()
    for path, value in expected.weights.items():
        assert found.weights[path].dtype == value.dtype
        np.testing.assert_array_equal(found.weights[path], value)


@pytest.mark.parametrize("graph", [None, b"\x08\x01 a graph"])
@pytest.mark.parametrize("out", [None, "deep/er/pets", "pets.zip"])
def test_what_is_pulled_is_what_was_pushed(hub: Hub, bundle: Bundle, graph: bytes | None, out: str | None) -> None:
    sent = bundle.halved() if graph is None else dataclasses.replace(bundle, graph=graph)
    assert push(sent, "me/pets") == f"{hub.url}/me/pets"
    place = pull("me/pets", out=out)
    assert place == Path(out or "pets")
    found = Bundle.load(place)
    assert_same(found, sent)
    assert "shiftvit pull me/pets --out model" in str(found.card)
    assert [entry.name for entry in place.parent.iterdir()] == [place.name]
    if out != "pets.zip":
        assert {entry.name for entry in place.iterdir()} == {MANIFEST, WEIGHTS, CARD} | ({GRAPH} if graph else set())
    assert hub.repositories["me/pets"].messages[-1] == "Upload a ShiftViT model"
    assert not hub.repositories["me/pets"].private


def refused(match: str, *arguments: object, **options: object) -> None:
    """Pulling fails in one line and leaves nothing; pushing changes nothing."""
    before = here()
    with pytest.raises(ShiftViTError, match=match) as caught:
        (pull if isinstance(arguments[0], str) else push)(*arguments, **options)  # type: ignore[arg-type]
    one_line(caught)
    assert here() == before


def test_a_second_push_replaces_the_bundle_and_nothing_else(hub: Hub, bundle: Bundle) -> None:
    push(dataclasses.replace(bundle, graph=b"graph"), "me/pets")
    hub.files("me/pets")["notes.txt"] = b"mine"
    push(dataclasses.replace(bundle, labels=("a", "b", "c")), "me/pets", message="New names")
    assert set(hub.files("me/pets")) == {".gitattributes", "notes.txt", MANIFEST, WEIGHTS, CARD}
    assert hub.repositories["me/pets"].messages[-1] == "New names"
    assert Bundle.load(pull("me/pets")).labels == ("a", "b", "c")
    hub.repositories["me/pets"].tags["v1"] = 1
    for revision in ("v1", make_sha(1)):
        assert_same(Bundle.load(pull("me/pets", revision=revision)), dataclasses.replace(bundle, graph=b"graph"))
    assert here() == ["pets"]
    refused("'me/pets' has no revision 'v2'; give a branch, a tag or a commit", "me/pets", revision="v2")


def test_a_push_in_the_midst_of_a_pull_does_not_mix(hub: Hub, bundle: Bundle) -> None:
    push(bundle, "me/pets")
    push(dataclasses.replace(bundle, labels=("a", "b", "c")), "me/newer")
    hub.meanwhile = hub.files("me/newer")
    assert Bundle.load(pull("me/pets")).labels == bundle.labels
    hub.meanwhile = {}
    assert Bundle.load(pull("me/pets")).labels == ("a", "b", "c")


def test_what_was_pulled_is_pushed_on_under_its_new_name(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    push(bundle, "me/pets")
    push(pull("me/pets"), "us/pets")
    card = hub.files("us/pets")[CARD].decode()
    assert re.findall("^shiftvit pull .*", card, re.MULTILINE) == ["shiftvit pull us/pets --out model"]
    push(bundle.save(tmp_path / "packed.zip"), "us/packed")
    assert_same(Bundle.load(pull("us/packed")), bundle)
    damaged = pull("me/pets", out="damaged")
    (damaged / WEIGHTS).write_bytes(b"damaged")
    refused("is damaged: its SHA-256", damaged, "me/other")
    assert "me/other" not in hub.repositories


def test_a_private_one_stays_private(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    push(bundle, "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    assert_same(Bundle.load(pull("me/secret", out="mine")), bundle)
    monkeypatch.delenv("HF_TOKEN")
    refused("has no repository 'me/secret'; check the name; if it is private: hf auth login", "me/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["me/open"] = Repository()
    refused("'me/open' exists and is public, so nothing is pushed", bundle, "me/open", private=True)
    assert len(hub.repositories["me/open"].commits) == 1


def test_a_token_that_is_missing_wrong_or_too_weak(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused("this token has no access to 'you/pets' at .*; log in with one that has: hf auth login", bundle, "you/pets")
    hub.repositories["me/open"] = Repository()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("rejects the token; create a new one and log in: hf auth login", bundle, "me/pets")
    refused("rejects the token", "me/open")
    monkeypatch.delenv("HF_TOKEN")
    refused("there is no token for http.*; log in: hf auth login", bundle, "me/pets")
    assert "me/pets" not in hub.repositories
    (tmp_path / "home").mkdir()
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)  # as `hf auth login` leaves it
    push(bundle, "me/pets")
    Path(constants.HF_TOKEN_PATH).unlink()
    assert_same(Bundle.load(pull("me/pets")), bundle)  # reading what is public needs none


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (WEIGHTS, flipped, f"'{WEIGHTS}' in 'me/pets' is damaged: its SHA-256"),
        (WEIGHTS, lambda content: content + b"more", f"'{WEIGHTS}' in 'me/pets' is damaged"),
        (GRAPH, flipped, f"'{GRAPH}' in 'me/pets' is damaged"),
        (MANIFEST, lambda content: content[:-9], f"'{MANIFEST}' in 'me/pets' cannot be read"),
        (MANIFEST, lambda content: content.replace(b'"format": 1', b'"format": 2'), "'me/pets' has format 2"),
        (MANIFEST, lambda content: content.replace(WEIGHTS.encode(), b"../../x"), "'me/pets' lists the files"),
    ],
)
def test_a_file_that_was_changed_on_the_way_is_refused(hub: Hub, bundle: Bundle, name, change, match) -> None:  # type: ignore[no-untyped-def]
    push(dataclasses.replace(bundle, graph=b"no graph of ours"), "me/pets")
    original = hub.files("me/pets")[name]
    hub.tampered[name] = change(original)
    assert hub.tampered[name] != original
    refused(match, "me/pets")
    earlier = bundle.save("pets")  # what lies there stays
    refused(match, "me/pets")
    assert_same(Bundle.load(earlier), bundle)


def test_a_card_is_text_that_anyone_may_edit(hub: Hub, bundle: Bundle) -> None:
    push(bundle, "me/pets")
    hub.files("me/pets")[CARD] = "# Mes animaux é\n".encode()
    assert Bundle.load(pull("me/pets")).card == "# Mes animaux é\n"
    hub.files("me/pets")[CARD] = b"x" * (2**20 + 1)
    hub.requests.clear()
    assert "ShiftViT, 3 classes" in (pull("me/pets") / CARD).read_text("utf-8")
    assert not [line for line in hub.requests if CARD in line]
    del hub.files("me/pets")[CARD]
    assert_same(Bundle.load(pull("me/pets")), bundle)
    broken = dataclasses.replace(bundle, card="---\ntags: [vision\n---\nText\n")
    refused(r"\(status 400|cannot be used \(.*: Invalid metadata in README.md", broken, "me/broken")


@pytest.mark.parametrize(
    "name", ["pets", "me/pets/more", "me/", "/pets", "me/..", "../pets", "me/pé", "https://x/y", ""]
)
def test_names_that_are_none(hub: Hub, bundle: Bundle, name: str) -> None:
    for arguments in ((name,), (bundle, name)):
        refused("is not a repository; write OWNER/NAME in letters", *arguments)
    assert not hub.requests


def test_repositories_that_hold_no_bundle(hub: Hub) -> None:
    refused("has no repository 'me/nothing'; check the name", "me/nothing")
    hub.repositories["me/other"] = Repository(commits=[{"config.json": b"{}", f"bundle/{MANIFEST}": b"{}"}])
    refused(f"'me/other' is not a bundle: it has no {MANIFEST}; choose one that shiftvit pushed", "me/other")
    hub.repositories["me/half"] = Repository(commits=[{MANIFEST: b"{}"}])
    refused(f"'me/half' is not a bundle: it has no {WEIGHTS}", "me/half")
    assert not [line for line in hub.requests if "/resolve/" in line]


def test_only_the_files_of_a_bundle_are_asked_for(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    push(bundle, "me/pets")
    hub.listed = dict.fromkeys(["../outside", "/tmp/outside", f"../{WEIGHTS}", "weights.pkl", f"deep/{GRAPH}"], 9)
    assert_same(Bundle.load(pull("me/pets")), bundle)
    asked = {line.rsplit("/", 1)[1] for line in hub.requests if "/resolve/" in line}
    assert asked == {MANIFEST, WEIGHTS, CARD}
    assert not list(tmp_path.rglob("*outside*"))


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        (WEIGHTS, 2**32 + 1, "has 4,294,967,297 bytes, but at most 4,294,967,296 are allowed; nothing was downloaded"),
        (MANIFEST, 2**25, "has 33,554,432 bytes, but at most 16,777,216 are allowed"),
        (GRAPH, 2**40, "has 1,099,511,627,776 bytes"),
        (WEIGHTS, None, "has unknown bytes"),
    ],
)
def test_files_that_are_too_large_are_not_downloaded(
    hub: Hub, bundle: Bundle, name: str, size: int | None, match: str
) -> None:
    push(bundle, "me/pets")
    hub.listed = {name: size}
    refused(match, "me/pets")
    assert not [line for line in hub.requests if "/resolve/" in line]


def test_a_place_that_is_something_else_is_left_alone(hub: Hub, bundle: Bundle) -> None:
    push(bundle, "me/pets")
    asked = len(hub.requests)
    Path("pets").mkdir()
    Path("pets/photo.jpg").write_bytes(b"mine")
    refused("'pets' exists and is not a bundle, so it is not replaced", "me/pets")
    refused(r"cannot write .*photo.jpg", "me/pets", out="pets/photo.jpg/pets")
    assert len(hub.requests) - asked <= 1
    assert Path("pets/photo.jpg").read_bytes() == b"mine"


def test_a_link_in_a_bundle_is_not_pushed(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("my secret")
    folder = bundle.save("model")
    (folder / CARD).unlink()
    (folder / CARD).symlink_to(tmp_path / "private")
    push(folder, "me/pets")
    assert b"secret" not in b"".join(hub.files("me/pets").values())
    assert hub.files("me/pets")[CARD].startswith(b"---\n")


@pytest.mark.usefixtures("hub")
def test_a_model_in_the_clients_own_cache_is_read_there(bundle: Bundle, tmp_path: Path) -> None:
    push(bundle, "me/pets")
    names = (WEIGHTS, MANIFEST, CARD)
    places = [Path(hf_hub_download("me/pets", name, cache_dir=tmp_path / "cache")) for name in names]
    assert all(place.is_symlink() for place in places)
    assert_same(Bundle.load(places[0].parent), bundle)


def test_a_hub_that_cannot_be_reached(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    push(bundle, "me/pets")
    for piece, status in (("/api/", 503), ("/api/", 429), ("/resolve/", 502)):
        hub.failing = {piece: status}
        monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
        refused(rf"http.* is overloaded or failing \(status {status}\); try again later", "me/pets")
    hub.failing = {"/objects/": 400}
    refused(r"rejects this for 'me/more' \(status 400", bundle, "me/more")
    hub.failing = {"/objects/": 403}
    refused("this token has no access to 'me/more'", bundle, "me/more")
    assert len(hub.repositories["me/more"].commits) == 1
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for arguments in (("me/pets",), (bundle, "me/pets")):
        refused(r"http://127.0.0.1:9 cannot be used \(ConnectError: .*refused\); check the network", *arguments)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    refused("HF_HUB_OFFLINE is set, so http.* is not contacted; unset it", "me/pets")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    refused(r"push and pull need huggingface_hub; pip install 'huggingface-hub>=2.0'", "me/pets")


def shiftvit(hub: Hub, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command in a process that has the hub and the token from its environment alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    home = str(Path(constants.HF_HUB_CACHE).parent)
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "shiftvit", *arguments]
    return subprocess.Popen(
        command, env=kept | told, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_the_commands(hub: Hub, bundle: Bundle) -> None:
    bundle.save("mine")
    steps = [
        (("push", "mine", "me/pets", "--private", "--message", "First"), 0, f"pushed: {hub.url}/me/pets\n"),
        (("pull", "me/pets", "--out", "there"), 0, "bundle: there\n"),
        (("pull", "me/nothing"), 2, ""),
    ]
    for arguments, status, printed in steps:
        with shiftvit(hub, *arguments) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (status, printed), err
        assert TOKEN not in err
    assert err.splitlines()[-1].startswith("shiftvit: http")
    assert hub.repositories["me/pets"].private
    assert hub.repositories["me/pets"].messages[-1] == "First"
    assert_same(Bundle.load("there"), bundle)
    assert here() == ["mine", "there"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_is_stopped_or_killed_leaves_no_model(hub: Hub, bundle: Bundle, number: signal.Signals) -> None:
    push(bundle, "me/pets")
    hub.held.clear()
    with shiftvit(hub, "pull", "me/pets") as process:
        assert hub.half.wait(60)
        (work,) = here()
        assert re.fullmatch(r"\.pets\..*\.tmp", work)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    hub.held.set()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), err
    assert here() == ([] if number == signal.SIGINT else [work])
    assert_same(Bundle.load(pull("me/pets")), bundle)
    assert here() == ["pets"]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A folder like one of `shiftvit demo --space`, with small files, and with what others put there."""
    folder = tmp_path / "demo"
    names = ["index.html", "page/api.js", "page/main.js", "model/model.json", "model/model.onnx", "model/head.bin"]
    for name in [*names, "samples/list.json", *(f"runtime/{_rename_runtime_file(name)}" for name in _RUNTIME_FILES)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{name} é".encode())
    (folder / "README.md").write_text("---\ntitle: pets\nsdk: static\n---\n")
    (tmp_path / "private").write_text("my secret")
    (folder / "notes.txt").write_text("my secret")
    (folder / "page" / "link.js").symlink_to(tmp_path / "private")
    return folder


def contents_of(demo: Path) -> dict[str, bytes]:
    places = (place for place in demo.rglob("*") if place.is_file() and not place.is_symlink())
    return {place.relative_to(demo).as_posix(): place.read_bytes() for place in places if place.name != "notes.txt"}


def test_a_demo_becomes_a_static_space(hub: Hub, demo: Path) -> None:
    assert push_space(read_space_files(demo), "me/pets") == f"{hub.url}/spaces/me/pets"
    space = hub.repositories["spaces/me/pets"]
    assert (space.sdk, space.private, space.messages[-1]) == ("static", False, "Upload a ShiftViT demo")
    assert {name: content for name, content in space.commits[-1].items() if name != ".gitattributes"} == contents_of(
        demo
    )
    assert "me/pets" not in hub.repositories  # a model of that name is something else


def test_a_newer_demo_replaces_the_one_in_the_space_and_nothing_else(hub: Hub, demo: Path) -> None:
    push_space(read_space_files(demo), "me/pets", private=True)
    assert hub.repositories["spaces/me/pets"].private
    hub.files("spaces/me/pets")["style.css"] = b"of the Hub"
    (demo / "page" / "main.js").unlink()
    (demo / "model" / "model.onnx").write_bytes(b"newer")
    push_space(read_space_files(demo), "me/pets", private=True, message="Newer")
    kept = {".gitattributes": b"*.onnx filter=lfs\n", "style.css": b"of the Hub"}
    assert hub.files("spaces/me/pets") == contents_of(demo) | kept
    assert hub.repositories["spaces/me/pets"].messages[-1] == "Newer"


def test_what_stands_against_a_space(hub: Hub, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = read_space_files(demo)

    def refused_space(match: str, name: str, **options: bool) -> None:
        before = {name: len(repository.commits) for name, repository in hub.repositories.items()}
        with pytest.raises(ShiftViTError, match=match) as caught:
            push_space(contents, name, **options)
        one_line(caught)
        assert {name: len(repository.commits) for name, repository in hub.repositories.items()} == before

    hub.repositories["spaces/me/app"] = Repository(sdk="gradio")
    refused_space("'me/app' exists and is a Space with the SDK 'gradio', not 'static', so nothing is pushed", "me/app")
    hub.repositories["spaces/me/open"] = Repository(sdk="static")
    refused_space("'me/open' exists and is public, so nothing is pushed", "me/open", private=True)
    refused_space("'pets' is not a repository; write OWNER/NAME", "pets")
    refused_space("this token has no access to 'you/pets'", "you/pets")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused_space("rejects the token; create a new one", "me/pets")
    monkeypatch.delenv("HF_TOKEN")
    refused_space("there is no token for http.*; log in: hf auth login", "me/pets")


@pytest.mark.parametrize("piece", ["/objects/", "/commit/"])
def test_an_upload_that_broke_off_is_run_again(hub: Hub, demo: Path, piece: str) -> None:
    push_space(read_space_files(demo), "me/pets")
    before = dict(hub.files("spaces/me/pets"))
    (demo / "model" / "model.onnx").write_bytes(b"newer")
    hub.failing = {piece: 400}
    with pytest.raises(ShiftViTError, match="rejects this for 'me/pets'") as caught:
        push_space(read_space_files(demo), "me/pets")
    one_line(caught)
    assert hub.files("spaces/me/pets") == before
    hub.failing = {}
    push_space(read_space_files(demo), "me/pets")
    assert hub.files("spaces/me/pets")["model/model.onnx"] == b"newer"


def test_a_demo_that_is_not_whole_is_not_pushed(demo: Path) -> None:
    (demo / "README.md").write_text("mine")
    with pytest.raises(
        ShiftViTError, match="has no line 'sdk: static', as a Space needs; write it again: shiftvit demo"
    ):
        read_space_files(demo)
    (demo / "README.md").unlink()
    with pytest.raises(ShiftViTError, match=r"lacks 'README\.md'; write it again: shiftvit demo MODEL .* --space"):
        read_space_files(demo)
    (demo / "model" / "model.onnx").unlink()
    (demo / "model" / "model.onnx").symlink_to(demo / "model" / "head.bin")
    with pytest.raises(ShiftViTError, match=r"lacks 'model/model\.onnx'"):
        read_space_files(demo)


def test_the_command_for_a_space(
    hub: Hub, demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def write(model: str, out: Path, *, space: bool) -> Path:
        made.append((model, space))
        return Path(shutil.copytree(demo, out))

    monkeypatch.setattr("shiftvit.serve.demo.write_demo", write)
    assert _run(["push", str(demo), "me/pets", "--space", "--message", "First"]) == 0
    assert capsys.readouterr().out == f"pushed: {hub.url}/spaces/me/pets\n"
    assert hub.repositories["spaces/me/pets"].messages[-1] == "First"
    assert not made  # it was made before
    assert _run(["push", "cifar10", "me/secret", "--space", "--private"]) == 0
    assert made == [("cifar10", True)]
    assert hub.repositories["spaces/me/secret"].private
    assert hub.files("spaces/me/secret")["page/api.js"] == (demo / "page" / "api.js").read_bytes()
    for name, token in (("secret", TOKEN), ("me/pets", None)):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        assert _run(["push", "cifar10", name, "--space"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(made) == 1  # what cannot be pushed is not made
