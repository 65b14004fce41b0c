"""Pushing and pulling, against a fake Hub over real HTTP: all files or none, and errors in one line."""

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

from bundles import assert_equal_bundles
from hub_world import TOKEN, Hub, Repository, make_sha, serve_hub
from shiftvit import Bundle, Preprocess, ShiftViTError
from shiftvit.bundle.hub import pull, push, push_space
from shiftvit.bundle.stored.manifest import CARD, GRAPH, MANIFEST, WEIGHTS
from shiftvit.cli.main import _run
from shiftvit.config import ModelConfig
from shiftvit.serve.demo import _RUNTIME_FILES, _rename_runtime_file, read_space_files

# huggingface_hub sends large files through an argument that its network library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    config = ModelConfig(image_shape=(16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1))
    values = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    weights = {"head/kernel": values, "head/bias": values[0]}  # checked only when a model is built
    return Bundle(config, ("cat", "dog", "ship"), Preprocess(std=64.0), weights, {"test": {"top1": 0.5, "n": 20}})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A fake Hub that huggingface_hub uses in this process. The current folder is an empty one."""
    with serve_hub() as running:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            monkeypatch.delenv(name)
        # huggingface_hub reads the environment when it is imported, which other tests may have done already.
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


def assert_one_line(caught: pytest.ExceptionInfo[ShiftViTError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    return text


def list_files() -> list[str]:
    return sorted(entry.name for entry in Path().iterdir())


def assert_same(found: Bundle, expected: Bundle) -> None:
    """Asserts that two models are equal to the last bit. Their cards differ, as a card names its repository."""
    assert_equal_bundles(*(dataclasses.replace(bundle, card=None) for bundle in (found, expected)))


@pytest.mark.parametrize("graph", [None, b"\x08\x01 a graph"])
@pytest.mark.parametrize("out", [None, "deep/er/pets", "pets.zip"])
def test_push_and_pull_round_trip(hub: Hub, bundle: Bundle, graph: bytes | None, out: str | None) -> None:
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


def assert_fails(match: str, *arguments: object, **options: object) -> None:
    """Asserts that a pull, or a push if the first argument is a bundle, fails in one line and leaves no files."""
    before = list_files()
    with pytest.raises(ShiftViTError, match=match) as caught:
        (pull if isinstance(arguments[0], str) else push)(*arguments, **options)  # type: ignore[arg-type]
    assert_one_line(caught)
    assert list_files() == before


def test_second_push_replaces_only_the_bundle(hub: Hub, bundle: Bundle) -> None:
    push(dataclasses.replace(bundle, graph=b"graph"), "me/pets")
    hub.files("me/pets")["notes.txt"] = b"mine"
    push(dataclasses.replace(bundle, labels=("a", "b", "c")), "me/pets", message="New names")
    assert set(hub.files("me/pets")) == {".gitattributes", "notes.txt", MANIFEST, WEIGHTS, CARD}
    assert hub.repositories["me/pets"].messages[-1] == "New names"
    assert Bundle.load(pull("me/pets")).labels == ("a", "b", "c")
    hub.repositories["me/pets"].tags["v1"] = 1
    for revision in ("v1", make_sha(1)):
        assert_same(Bundle.load(pull("me/pets", revision=revision)), dataclasses.replace(bundle, graph=b"graph"))
    assert list_files() == ["pets"]
    assert_fails("'me/pets' has no revision 'v2'; give a branch, a tag or a commit", "me/pets", revision="v2")


def test_push_during_a_pull_does_not_mix_versions(hub: Hub, bundle: Bundle) -> None:
    push(bundle, "me/pets")
    push(dataclasses.replace(bundle, labels=("a", "b", "c")), "me/newer")
    hub.meanwhile = hub.files("me/newer")
    assert Bundle.load(pull("me/pets")).labels == bundle.labels
    hub.meanwhile = {}
    assert Bundle.load(pull("me/pets")).labels == ("a", "b", "c")


def test_pulled_bundle_is_pushed_under_a_new_name(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    push(bundle, "me/pets")
    push(pull("me/pets"), "us/pets")
    card = hub.files("us/pets")[CARD].decode()
    assert re.findall("^shiftvit pull .*", card, re.MULTILINE) == ["shiftvit pull us/pets --out model"]
    push(bundle.save(tmp_path / "packed.zip"), "us/packed")
    assert_same(Bundle.load(pull("us/packed")), bundle)
    damaged = pull("me/pets", out="damaged")
    (damaged / WEIGHTS).write_bytes(b"damaged")
    assert_fails("is damaged: its SHA-256", damaged, "me/other")
    assert "me/other" not in hub.repositories


def test_private_repository_stays_private(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    push(bundle, "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    assert_same(Bundle.load(pull("me/secret", out="mine")), bundle)
    monkeypatch.delenv("HF_TOKEN")
    assert_fails("has no repository 'me/secret'; check the name; if it is private: hf auth login", "me/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["me/open"] = Repository()
    assert_fails("'me/open' exists and is public, so nothing is pushed", bundle, "me/open", private=True)
    assert len(hub.repositories["me/open"].commits) == 1


def test_missing_wrong_or_insufficient_token_fails(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert_fails(
        "this token has no access to 'you/pets' at .*; log in with one that has: hf auth login", bundle, "you/pets"
    )
    hub.repositories["me/open"] = Repository()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_fails("rejects the token; create a new one and log in: hf auth login", bundle, "me/pets")
    assert_fails("rejects the token", "me/open")
    monkeypatch.delenv("HF_TOKEN")
    assert_fails("there is no token for http.*; log in: hf auth login", bundle, "me/pets")
    assert "me/pets" not in hub.repositories
    (tmp_path / "home").mkdir()
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)  # as `hf auth login` writes it
    push(bundle, "me/pets")
    Path(constants.HF_TOKEN_PATH).unlink()
    assert_same(Bundle.load(pull("me/pets")), bundle)  # a public repository needs no token


def flip_bit(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (WEIGHTS, flip_bit, f"'{WEIGHTS}' in 'me/pets' is damaged: its SHA-256"),
        (WEIGHTS, lambda content: content + b"more", f"'{WEIGHTS}' in 'me/pets' is damaged"),
        (GRAPH, flip_bit, f"'{GRAPH}' in 'me/pets' is damaged"),
        (MANIFEST, lambda content: content[:-9], f"'{MANIFEST}' in 'me/pets' cannot be read"),
        (MANIFEST, lambda content: content.replace(b'"format": 1', b'"format": 2'), "'me/pets' has format 2"),
        (MANIFEST, lambda content: content.replace(WEIGHTS.encode(), b"../../x"), "'me/pets' lists the files"),
    ],
)
def test_file_changed_in_transit_fails(hub: Hub, bundle: Bundle, name, change, match) -> None:  # type: ignore[no-untyped-def]
    push(dataclasses.replace(bundle, graph=b"no graph of ours"), "me/pets")
    original = hub.files("me/pets")[name]
    hub.tampered[name] = change(original)
    assert hub.tampered[name] != original
    assert_fails(match, "me/pets")
    earlier = bundle.save("pets")  # an earlier pull stays as it is
    assert_fails(match, "me/pets")
    assert_same(Bundle.load(earlier), bundle)


def test_card_may_be_edited_or_missing(hub: Hub, bundle: Bundle) -> None:
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
    assert_fails(r"\(status 400|cannot be used \(.*: Invalid metadata in README.md", broken, "me/broken")


@pytest.mark.parametrize(
    "name", ["pets", "me/pets/more", "me/", "/pets", "me/..", "../pets", "me/pé", "https://x/y", ""]
)
def test_invalid_names_fail_without_a_request(hub: Hub, bundle: Bundle, name: str) -> None:
    for arguments in ((name,), (bundle, name)):
        assert_fails("is not a repository; write OWNER/NAME in letters", *arguments)
    assert not hub.requests


def test_repositories_without_a_bundle_fail(hub: Hub) -> None:
    assert_fails("has no repository 'me/nothing'; check the name", "me/nothing")
    hub.repositories["me/other"] = Repository(commits=[{"config.json": b"{}", f"bundle/{MANIFEST}": b"{}"}])
    assert_fails(f"'me/other' is not a bundle: it has no {MANIFEST}; choose one that shiftvit pushed", "me/other")
    hub.repositories["me/half"] = Repository(commits=[{MANIFEST: b"{}"}])
    assert_fails(f"'me/half' is not a bundle: it has no {WEIGHTS}", "me/half")
    assert not [line for line in hub.requests if "/resolve/" in line]


def test_only_files_of_a_bundle_are_downloaded(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
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
    assert_fails(match, "me/pets")
    assert not [line for line in hub.requests if "/resolve/" in line]


def test_pull_does_not_replace_other_files(hub: Hub, bundle: Bundle) -> None:
    push(bundle, "me/pets")
    asked = len(hub.requests)
    Path("pets").mkdir()
    Path("pets/photo.jpg").write_bytes(b"mine")
    assert_fails("'pets' exists and is not a bundle, so it is not replaced", "me/pets")
    assert_fails(r"cannot write .*photo.jpg", "me/pets", out="pets/photo.jpg/pets")
    assert len(hub.requests) - asked <= 1
    assert Path("pets/photo.jpg").read_bytes() == b"mine"


def test_link_in_a_bundle_is_not_pushed(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("my secret")
    folder = bundle.save("model")
    (folder / CARD).unlink()
    (folder / CARD).symlink_to(tmp_path / "private")
    push(folder, "me/pets")
    assert b"secret" not in b"".join(hub.files("me/pets").values())
    assert hub.files("me/pets")[CARD].startswith(b"---\n")


@pytest.mark.usefixtures("hub")
def test_bundle_loads_from_the_cache_of_huggingface_hub(bundle: Bundle, tmp_path: Path) -> None:
    push(bundle, "me/pets")
    names = (WEIGHTS, MANIFEST, CARD)
    places = [Path(hf_hub_download("me/pets", name, cache_dir=tmp_path / "cache")) for name in names]
    assert all(place.is_symlink() for place in places)
    assert_same(Bundle.load(places[0].parent), bundle)


def test_unreachable_or_failing_hub(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    push(bundle, "me/pets")
    for piece, status in (("/api/", 503), ("/api/", 429), ("/resolve/", 502)):
        hub.failing = {piece: status}
        monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub sleeps between its attempts
        assert_fails(rf"http.* is overloaded or failing \(status {status}\); try again later", "me/pets")
    hub.failing = {"/objects/": 400}
    assert_fails(r"rejects the request for 'me/more' \(status 400", bundle, "me/more")
    hub.failing = {"/objects/": 403}
    assert_fails("this token has no access to 'me/more'", bundle, "me/more")
    assert len(hub.repositories["me/more"].commits) == 1
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for arguments in (("me/pets",), (bundle, "me/pets")):
        assert_fails(r"http://127.0.0.1:9 cannot be used \(ConnectError: .*refused\); check the network", *arguments)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert_fails("HF_HUB_OFFLINE is set, so http.* is not contacted; unset it", "me/pets")


def test_missing_huggingface_hub_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    assert_fails(r"push and pull need huggingface_hub; pip install 'huggingface-hub>=2.0'", "me/pets")


def start_command(hub: Hub, *arguments: str) -> subprocess.Popen[str]:
    """Starts `shiftvit` in a process that gets the Hub and the token from its environment alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    home = str(Path(constants.HF_HUB_CACHE).parent)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "shiftvit", *arguments]
    return subprocess.Popen(
        command,
        env=kept | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.slow
def test_push_and_pull_commands(hub: Hub, bundle: Bundle) -> None:
    bundle.save("mine")
    steps = [
        (("push", "mine", "me/pets", "--private", "--message", "First"), 0, f"pushed: {hub.url}/me/pets\n"),
        (("pull", "me/pets", "--out", "there"), 0, "bundle: there\n"),
        (("pull", "me/nothing"), 2, ""),
    ]
    for arguments, status, printed in steps:
        with start_command(hub, *arguments) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (status, printed), err
        assert TOKEN not in err
    assert err.splitlines()[-1].startswith("shiftvit: http")
    assert hub.repositories["me/pets"].private
    assert hub.repositories["me/pets"].messages[-1] == "First"
    assert_same(Bundle.load("there"), bundle)
    assert list_files() == ["mine", "there"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_pull_leaves_no_model(hub: Hub, bundle: Bundle, number: signal.Signals) -> None:
    push(bundle, "me/pets")
    hub.held.clear()
    with start_command(hub, "pull", "me/pets") as process:
        assert hub.half.wait(60)
        (work,) = list_files()
        assert re.fullmatch(r"\.pets\..*\.tmp", work)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    hub.held.set()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), err
    assert list_files() == ([] if number == signal.SIGINT else [work])
    assert_same(Bundle.load(pull("me/pets")), bundle)
    assert list_files() == ["pets"]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A folder as `shiftvit demo --space` writes it, but with small files, and with two files of the user."""
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


def read_files(demo: Path) -> dict[str, bytes]:
    """Returns name -> content of the files of a demo, without those of the user."""
    places = (place for place in demo.rglob("*") if place.is_file() and not place.is_symlink())
    return {place.relative_to(demo).as_posix(): place.read_bytes() for place in places if place.name != "notes.txt"}


def test_demo_is_pushed_as_a_static_space(hub: Hub, demo: Path) -> None:
    assert push_space(read_space_files(demo), "me/pets") == f"{hub.url}/spaces/me/pets"
    space = hub.repositories["spaces/me/pets"]
    assert (space.sdk, space.private, space.messages[-1]) == ("static", False, "Upload a ShiftViT demo")
    assert {name: content for name, content in space.commits[-1].items() if name != ".gitattributes"} == read_files(
        demo
    )
    assert "me/pets" not in hub.repositories  # a Space and a model may share a name


def test_newer_demo_replaces_only_the_earlier_demo(hub: Hub, demo: Path) -> None:
    push_space(read_space_files(demo), "me/pets", private=True)
    assert hub.repositories["spaces/me/pets"].private
    hub.files("spaces/me/pets")["style.css"] = b"of the Hub"
    (demo / "page" / "main.js").unlink()
    (demo / "model" / "model.onnx").write_bytes(b"newer")
    push_space(read_space_files(demo), "me/pets", private=True, message="Newer")
    kept = {".gitattributes": b"*.onnx filter=lfs\n", "style.css": b"of the Hub"}
    assert hub.files("spaces/me/pets") == read_files(demo) | kept
    assert hub.repositories["spaces/me/pets"].messages[-1] == "Newer"


def test_push_to_an_unsuitable_space_fails(hub: Hub, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = read_space_files(demo)

    def assert_push_fails(match: str, name: str, **options: bool) -> None:
        before = {name: len(repository.commits) for name, repository in hub.repositories.items()}
        with pytest.raises(ShiftViTError, match=match) as caught:
            push_space(contents, name, **options)
        assert_one_line(caught)
        assert {name: len(repository.commits) for name, repository in hub.repositories.items()} == before

    hub.repositories["spaces/me/app"] = Repository(sdk="gradio")
    assert_push_fails(
        "'me/app' exists and is a Space with the SDK 'gradio', not 'static', so nothing is pushed", "me/app"
    )
    hub.repositories["spaces/me/open"] = Repository(sdk="static")
    assert_push_fails("'me/open' exists and is public, so nothing is pushed", "me/open", private=True)
    assert_push_fails("'pets' is not a repository; write OWNER/NAME", "pets")
    assert_push_fails("this token has no access to 'you/pets'", "you/pets")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_push_fails("rejects the token; create a new one", "me/pets")
    monkeypatch.delenv("HF_TOKEN")
    assert_push_fails("there is no token for http.*; log in: hf auth login", "me/pets")


@pytest.mark.parametrize("piece", ["/objects/", "/commit/"])
def test_failed_upload_can_be_repeated(hub: Hub, demo: Path, piece: str) -> None:
    push_space(read_space_files(demo), "me/pets")
    before = dict(hub.files("spaces/me/pets"))
    (demo / "model" / "model.onnx").write_bytes(b"newer")
    hub.failing = {piece: 400}
    with pytest.raises(ShiftViTError, match="rejects the request for 'me/pets'") as caught:
        push_space(read_space_files(demo), "me/pets")
    assert_one_line(caught)
    assert hub.files("spaces/me/pets") == before
    hub.failing = {}
    push_space(read_space_files(demo), "me/pets")
    assert hub.files("spaces/me/pets")["model/model.onnx"] == b"newer"


def test_incomplete_demo_is_not_pushed(demo: Path) -> None:
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


def test_push_command_for_a_space(
    hub: Hub, demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []

    def write(model: str, out: Path, *, space: bool) -> Path:
        written.append((model, space))
        return Path(shutil.copytree(demo, out))

    monkeypatch.setattr("shiftvit.serve.demo.write_demo", write)
    assert _run(["push", str(demo), "me/pets", "--space", "--message", "First"]) == 0
    assert capsys.readouterr().out == f"pushed: {hub.url}/spaces/me/pets\n"
    assert hub.repositories["spaces/me/pets"].messages[-1] == "First"
    assert not written  # the demo existed
    assert _run(["push", "cifar10", "me/secret", "--space", "--private"]) == 0
    assert written == [("cifar10", True)]
    assert hub.repositories["spaces/me/secret"].private
    assert hub.files("spaces/me/secret")["page/api.js"] == (demo / "page" / "api.js").read_bytes()
    for name, token in (("secret", TOKEN), ("me/pets", None)):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        assert _run(["push", "cifar10", name, "--space"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(written) == 1  # a demo that cannot be pushed is not written
