"""Pulling published weights from a local server: they become a named model, or an error in one line."""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import official
from attack import bounded_memory, write_liar
from file_server import FileServer, serve_file
from shiftvit import Bundle, Predictor, Preprocess, ShiftViT, ShiftViTError, files
from shiftvit import download as downloads
from shiftvit.benchmark import benchmark
from shiftvit.bundle.card import address_card
from shiftvit.bundle.describe import describe
from shiftvit.bundle.stored import published
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.bundle.stored.published import PUBLISHED, Published, read_imagenet_classes
from shiftvit.cli.main import main
from shiftvit.exports import pull as pulling
from shiftvit.exports.pull import pull_published
from shiftvit.presets import PRESETS, Preset
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.finetune import apply_start
from tensors import to_numpy

torch = pytest.importorskip("torch")

NAME = "shiftvit_pocket"
SMALL = {"image_shape": (32, 32, 3), "embed_dim": 24, "depths": (1, 2), "mlp_ratio": 2.0, "drop_path": 0.1}


@pytest.fixture(autouse=True)
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small model that counts as published, below data and cache folders for each test."""
    monkeypatch.setenv("SHIFTVIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(PRESETS, NAME, Preset(SMALL, (61.5, "ImageNet-1K, 32x32"), "for tests"))
    monkeypatch.setitem(PUBLISHED, NAME, Published(NAME))
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    # Building and checking a graph takes long; test_pull_full.py does it.
    monkeypatch.setattr(pulling, "add_graph", lambda bundle: Bundle(**{**vars(bundle), "graph": b"a graph"}))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "data" / "models" / NAME


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small model as training saves it."""
    path = tmp_path_factory.mktemp("weights") / "pocket.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, NAME, Preset(SMALL, None, "for tests"))
        weights = official.make_state_dict(NAME)
    torch.save(official.make_checkpoint(weights), path)
    return path


@pytest.fixture
def server(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve_file(checkpoint.read_bytes()) as state:
        monkeypatch.setenv(published.MIRROR, state.url)
        yield state


def assert_pull_fails(match: str, name: str = NAME, source: Path | None = None) -> str:
    """Checks that a pull fails in one line and leaves no file behind; returns the message."""
    folder = files.find_data_folder("models")
    before = sorted(folder.rglob("*")) if folder.exists() else []
    with pytest.raises(ShiftViTError, match=match) as caught:
        pull_published(name, source)
    text = str(caught.value)
    assert text.isprintable()
    after = sorted(entry for entry in folder.rglob("*") if entry.name != ".lock") if folder.exists() else []
    assert after == [entry for entry in before if entry.name != ".lock"]
    return text


def test_published_table_matches_the_authors() -> None:
    top1 = {
        "shiftvit_tiny_light": 79.4,
        "shiftvit_tiny_r2": 81.7,
        "shiftvit_small_light": 81.6,
        "shiftvit_small_r2": 82.8,
    }
    rows = {name: row for name, row in PUBLISHED.items() if name != NAME}
    assert {name: row.top1[0] for name, row in rows.items()} == top1
    for name, row in rows.items():
        assert row.url == f"https://github.com/microsoft/SPACH/releases/download/v1.0/{name}.pth"
        assert row.license == "mit"


def test_imagenet_class_names() -> None:
    names, synsets = read_imagenet_classes()
    assert len(names) == len(set(names)) == len(synsets) == 1000
    assert synsets == tuple(sorted(synsets))
    known = {
        0: "tench",
        1: "goldfish",
        134: "crane bird",
        207: "golden retriever",
        281: "tabby",
        517: "crane",
        999: "toilet tissue",
    }
    assert {index: names[index] for index in known} == known
    assert (synsets[0], synsets[207], synsets[999]) == ("n01440764", "n02099601", "n15075141")


def test_pulled_model_is_complete(
    server: FileServer, checkpoint: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull_published(NAME) == model_folder
    digest = files.hash_file(checkpoint)
    assert digest in capsys.readouterr().err
    bundle = Bundle.load(NAME)
    names, synsets = read_imagenet_classes()
    assert (bundle.labels, bundle.synsets, bundle.graph) == (names, synsets, b"a graph")
    assert bundle.provenance is not None
    assert bundle.provenance.model_dump(exclude={"date"}) == {
        "name": NAME, "address": f"{server.url}/{NAME}.pth", "sha256": digest, "license": "mit", "top1": 61.5,
        "data": "ImageNet-1K, 32x32",
    }  # fmt: skip
    assert bundle.metrics == {}
    card = (model_folder / "README.md").read_text("utf-8")
    assert "Published, not measured here: top-1 61.5" in card
    assert 'license: "mit"' in card
    assert digest in card
    assert not list(files.find_cache_folder("weights").iterdir())
    assert [entry.name for entry in model_folder.parent.iterdir() if entry.name != ".lock"] == [NAME]
    # The values come from the file; the authors' names are translated to ours.
    kernel = official.make_state_dict(NAME)["layers.1.blocks.1.mlp.fc2.weight"][:, :, 0, 0]
    np.testing.assert_array_equal(bundle.weights["stage2_block2/mlp/fc2/kernel"], kernel.T)


def test_preprocessing_matches_the_authors_evaluation() -> None:
    expected = Preprocess(
        resize=256, crop=224, crop_position="center", interpolation="bicubic",
        mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375),
    )  # fmt: skip
    assert published.find_evaluation(224) == expected


def test_published_name_works_wherever_a_model_is_named(checkpoint: Path, model_folder: Path) -> None:
    for use in (Bundle.load, lambda name: ShiftViT.from_preset(name, weights="imagenet")):
        with pytest.raises(ShiftViTError, match=f"'{NAME}' are not on this machine yet; run: shiftvit pull {NAME}$"):
            use(NAME)
    assert describe(NAME)["notes"]["weights"] == f"not on this machine; shiftvit pull {NAME}"
    pull_published(NAME, checkpoint)
    assert describe(NAME)["notes"]["weights"] == f"in {model_folder}"
    bundle = Bundle.load(NAME)
    model = ShiftViT.from_preset(NAME, weights="imagenet")
    for variable in model.weights:
        np.testing.assert_array_equal(to_numpy(variable), bundle.weights[variable.path])
    other = ShiftViT.from_preset(NAME, weights="imagenet", num_classes=3, image_shape=(64, 48, 3))
    np.testing.assert_array_equal(to_numpy(other.weights[0]), bundle.weights[other.weights[0].path])
    assert np.abs(to_numpy(other.get_layer("head").kernel)).max() < 0.1  # random
    with pytest.raises(ShiftViTError, match="do not fit these arguments"):
        ShiftViT.from_preset(NAME, weights="imagenet", depths=(1, 3))
    with pytest.raises(ShiftViTError, match="'shiftvit_base_r4' is an architecture without published weights"):
        ShiftViT.from_preset("shiftvit_base_r4", weights="imagenet")
    Path(NAME).mkdir()  # an unrelated folder of that name
    recipe = apply_start(Recipe.load("finetune", **{"start.source": NAME}))
    assert recipe.start.source == NAME
    assert recipe.model.depths == (1, 2)
    assert recipe.preprocess.mean == published.MEAN


def test_local_bundle_takes_precedence_with_a_notice(
    checkpoint: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pull_published(NAME, checkpoint)
    Path(NAME).mkdir()
    assert Bundle.load(NAME).labels[0] == "tench"
    shutil.rmtree(NAME)
    Bundle(**{**vars(Bundle.load(NAME)), "labels": tuple(map(str, range(1000))), "synsets": ()}).save(NAME)
    capsys.readouterr()
    assert Bundle.load(f"./{NAME}").labels[0] == "0"
    assert capsys.readouterr().err == ""
    assert Bundle.load(NAME).labels[0] == "0"
    assert f"the model of that name is '{model_folder}'" in capsys.readouterr().err
    assert Bundle.load(model_folder).labels[0] == "tench"


def test_local_export_takes_precedence_with_a_notice(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pull_published(NAME, checkpoint)
    Path(NAME).mkdir()
    shutil.copy(PRETRAINED / "cifar10" / "model.onnx", Path(NAME, "model.onnx"))
    capsys.readouterr()
    assert Predictor.from_pretrained(f"./{NAME}").labels[0] == "airplane"
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert Predictor.from_pretrained(NAME).labels[0] == "airplane"
    assert capsys.readouterr().err.count("in the working folder; the model of that name is") == 1


def test_second_pull_requires_the_same_file(
    server: FileServer, checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    pull_published(NAME)
    modified = model_folder.stat().st_mtime_ns
    assert pull_published(NAME) == model_folder
    assert model_folder.stat().st_mtime_ns == modified
    weights = official.make_state_dict(NAME, seed=1)
    torch.save(official.to_tensors(weights), tmp_path / "other.pth")
    server.content, server.etag = (tmp_path / "other.pth").read_bytes(), '"two"'
    assert_pull_fails("this is not the shiftvit_pocket that was pulled on 20.*its SHA-256 is .*, not .*; to use it")
    assert_pull_fails("this is not the shiftvit_pocket that was pulled on 20", source=tmp_path / "other.pth")
    assert Bundle.load(NAME).provenance.sha256 == files.hash_file(checkpoint)  # type: ignore[union-attr]
    (model_folder / "model.safetensors").write_bytes(b"damaged")
    server.content = checkpoint.read_bytes()
    pull_published(NAME)
    assert Bundle.load(NAME).labels[0] == "tench"


def test_pinned_hash_is_verified(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, NAME, Published(NAME, sha256="0" * 64))
    assert_pull_fails(f"this is not the published {NAME}: its SHA-256 is .*, not 0000", source=checkpoint)


def test_unknown_names_and_missing_files_fail(tmp_path: Path) -> None:
    assert_pull_fails(
        "there are no published weights 'shiftvit_pokket'; did you mean 'shiftvit_pocket'.*Or give OWNER/NAME",
        "shiftvit_pokket",
    )
    assert_pull_fails(
        "there is no file .*absent.pth.*; give the path of shiftvit_pocket.pth", source=tmp_path / "absent.pth"
    )
    assert_pull_fails("there is no file", source=tmp_path)


def test_offline_pull_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(published.MIRROR, "http://127.0.0.1:9")
    assert_pull_fails("cannot be downloaded: Connection refused; .* shiftvit pull shiftvit_pocket --from FILE")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"status": 404}, "the server responded 404"),
        ({"status": 503}, "the server responded 503"),
        ({"content": b"\n<!DOCTYPE html><p>Log in"}, "the server sent a web page instead of the file"),
        ({"content": b""}, "cannot read weights"),
        ({"content": b"no weights at all"}, "cannot read weights"),
    ],
)
def test_invalid_answers_fail_and_leave_nothing(server: FileServer, change: dict[str, Any], match: str) -> None:
    good = server.content
    for key, value in change.items():
        setattr(server, key, value)
    assert_pull_fails(match)
    cached = files.find_cache_folder("weights") / f"{NAME}.pth"
    assert not cached.exists() or not cached.read_bytes()
    server.content, server.status = good, 200
    pull_published(NAME)  # nothing of the bad answer was kept
    assert Bundle.load(NAME).labels[0] == "tench"


def test_only_http_redirects_are_followed(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(published.MIRROR, f"{server.url}/moved")
    server.redirect = "file:///etc/hostname"
    assert_pull_fails("the server responded 302 .*file:///etc/hostname.* is not allowed")
    server.redirect = f"{server.url}/there/x"
    pull_published(NAME)
    assert [path for path, _ in server.requests] == [f"/moved/{NAME}.pth"] * 2 + ["/there/x"]


def test_interrupted_download_continues(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.stop_after = 100_000
    assert len(server.content) > 200_000
    pull_published(NAME)  # it continues as long as each attempt brings some bytes
    assert len(server.requests) > 2
    assert server.requests[1][1] == "bytes=99999-"
    assert capsys.readouterr().err.count("downloading http") == 1
    assert Bundle.load(NAME).labels[0] == "tench"


def test_bundle_with_missing_synsets_fails(checkpoint: Path, model_folder: Path) -> None:
    pull_published(NAME, checkpoint)
    manifest = json.loads((model_folder / "bundle.json").read_text("utf-8"))
    manifest["synsets"] = manifest["synsets"][1:]
    (model_folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ShiftViTError, match="999 synsets do not identify 1000 labels"):
        Bundle.load(NAME)


def test_card_has_the_pull_command(checkpoint: Path, model_folder: Path) -> None:
    pull_published(NAME, checkpoint)
    card = (model_folder / "README.md").read_text("utf-8")
    assert f"\nshiftvit pull {NAME}\nshiftvit predict photo.jpg --model {NAME}\n" in card
    assert f"\nshiftvit pull me/mine --out {NAME}\nshiftvit predict photo.jpg --model {NAME}\n" in address_card(
        card, "me/mine"
    )


def test_benchmark_needs_the_pulled_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftvit.benchmark.measure_peak_gflops", lambda _: 100.0)  # takes seconds, and is not needed
    with pytest.raises(ShiftViTError, match=f"measure it with --train, or run first: shiftvit pull {NAME}$"):
        benchmark(NAME)
    pull_published(NAME, checkpoint)
    found = benchmark(NAME, batch_sizes=(2,), repeats=1, seconds=0.01, runtime="keras")
    assert found["rows"][0]["images_per_second"] > 0


def test_flipped_bit_is_detected(checkpoint: Path, tmp_path: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "flipped.pth").write_bytes(content)
    assert_pull_fails("flipped.pth' is damaged .*; download it again", source=tmp_path / "flipped.pth")
    write_liar(tmp_path / "liar.pth", zipfile.ZIP_LZMA, "data")
    with bounded_memory():
        assert_pull_fails("liar.pth' is damaged .*; download it again", source=tmp_path / "liar.pth")


def test_unwritable_folders_fail_in_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SHIFTVIT_DATA", str(tmp_path / "file"))
    with pytest.raises(ShiftViTError, match=r"cannot write .*Not a directory; set SHIFTVIT_DATA and"):
        pull_published(NAME, checkpoint)
    monkeypatch.setenv("SHIFTVIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ShiftViTError, match=r"cannot write .*Not a directory; set SHIFTVIT_DATA and"):
        pull_published(NAME)


def test_full_disk_fails_in_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", raise_no_space)
    assert_pull_fails("No space left on device; free space, or set SHIFTVIT_DATA to another folder", source=checkpoint)


def test_folder_of_someone_else_is_not_replaced(checkpoint: Path, model_folder: Path) -> None:
    model_folder.mkdir(parents=True)
    (model_folder / "notes.txt").write_text("mine")
    assert_pull_fails("is not a bundle, so it is not replaced; set SHIFTVIT_DATA to another", source=checkpoint)


def run_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Runs `shiftvit`; returns its status, standard output and standard error."""
    monkeypatch.setattr("sys.argv", ["shiftvit", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_commands(
    checkpoint: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {
        ("pull", NAME, "--revision", "v1"): "--revision is for repositories, OWNER/NAME",
        (
            "pull",
            NAME,
            "--out",
            "here",
        ): f"--out is for repositories, OWNER/NAME; `shiftvit pack {NAME} DIR` makes a copy",
        ("pull", "me/pets", "--from", "x.pth"): "--from is for published weights, and 'me/pets' is a repository",
        ("pull", "pets"): "there are no published weights 'pets'",
        ("evaluate", NAME): f"run: shiftvit pull {NAME}",
        ("explain", "x.jpg", "--model", NAME): None,
        ("push", NAME, "me/pets"): f"run: shiftvit pull {NAME}",
        ("export", NAME): f"run: shiftvit pull {NAME}",
        ("pack", NAME, "out"): f"run: shiftvit pull {NAME}",
    }
    for arguments, match in faults.items():
        status, out, err = run_command(capsys, monkeypatch, *arguments)
        assert (status, out) == (2, ""), arguments
        assert err.count("\n") == 1
        assert match is None or match in err
    status, out, _ = run_command(capsys, monkeypatch, "pull", NAME, "--from", str(checkpoint))
    assert status == 0
    assert out == f"bundle: {model_folder}\ntry it: shiftvit predict photo.jpg --model {NAME}\n"
    status, out, _ = run_command(capsys, monkeypatch, "pack", NAME, "copy.zip")
    assert (status, out) == (0, "bundle: copy.zip\n")
    assert Bundle.load("copy.zip").provenance == Bundle.load(NAME).provenance
    status, out, _ = run_command(capsys, monkeypatch, "info", NAME)
    assert f"in {model_folder}" in out
    status, out, _ = run_command(capsys, monkeypatch, "info", "copy.zip")
    assert "license mit, SHA-256" in out
