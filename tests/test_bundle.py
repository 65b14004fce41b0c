"""Bundles: damaged, foreign and newer ones fail with one line, and loading never runs code."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from attack import Attack
from bundles import assert_equal_bundles
from shiftvit import Bundle, Preprocess, Recipe, ShiftViT, ShiftViTError
from shiftvit.bundle.stored.container import hash_content
from shiftvit.bundle.stored.find import PRETRAINED, choose_name, list_pretrained
from shiftvit.bundle.stored.manifest import CARD, GRAPH, MANIFEST, WEIGHTS
from shiftvit.training.finetune import apply_start, put_weights
from tensors import set_random_weights


@pytest.fixture
def model():
    return ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1), norm="batch")


@pytest.fixture
def folder(model, tmp_path):
    preprocess = Preprocess(resize=20, crop=16, mean=(1.0, 2.0, 3.0), std=(50.0, 60.0, 70.0))
    return Bundle.from_model(model, ("a", "b", "c"), preprocess, {"test": {"top1": 0.5}}).save(tmp_path / "bundle")


def edit_manifest(folder, **changes):
    tree = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(tree))


def test_save_and_load_round_trip(model, folder):
    loaded = Bundle.load(folder)
    assert loaded.labels == ("a", "b", "c")
    assert loaded.preprocess.mean == (1.0, 2.0, 3.0)
    assert loaded.metrics == {"test": {"top1": 0.5}}
    assert loaded.config == model.settings
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.build().predict_on_batch(images), model.predict_on_batch(images))
    loaded.save(folder)  # overwrites the bundle it was loaded from
    assert Bundle.load(folder).labels == loaded.labels
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, WEIGHTS, CARD])
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_weights_fail(folder, size):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ShiftViTError, match="is damaged"):
        Bundle.load(folder)


def test_flipped_bit_in_the_weights_fails(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ShiftViTError, match="is damaged"):
        Bundle.load(folder)


def test_invalid_manifests_fail(folder):
    edit_manifest(folder, format=2)
    with pytest.raises(ShiftViTError, match="has format 2; this shiftvit reads up to 1; update"):
        Bundle.load(folder)
    edit_manifest(folder, format=1, surprise=1)
    with pytest.raises(ShiftViTError, match="surprise"):
        Bundle.load(folder)
    (folder / MANIFEST).write_text("[1, 2]")
    with pytest.raises(ShiftViTError, match="is not a valid bundle"):
        Bundle.load(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ShiftViTError, match="cannot be read"):
        Bundle.load(folder)


def test_weights_of_another_configuration_fail(folder):
    tree = json.loads((folder / MANIFEST).read_text())
    edit_manifest(folder, model={**tree["model"], "embed_dim": 48})
    with pytest.raises(ShiftViTError, match="do not fit its own model configuration"):
        Bundle.load(folder).build()
    twin = ShiftViT((16, 16, 3), num_classes=3, embed_dim=48, depths=(1, 1), norm="batch")
    with pytest.raises(ShiftViTError, match="do not fit its own model configuration, beginning with 'head/kernel'"):
        put_weights(twin, str(folder), ("a", "b", "c"))


@pytest.mark.parametrize(
    "change", [{"depths": [2**31 - 1]}, {"embed_dim": 10**9}, {"mlp_ratio": 1e9}, {"depths": [1] * 16}], ids=str
)
def test_configuration_larger_than_the_weights_fails(folder, change):
    """Before the model is built, which could take any amount of memory."""
    tree = json.loads((folder / MANIFEST).read_text())
    edit_manifest(folder, model={**tree["model"], "image_shape": [None, None, 3], **change})
    with pytest.raises(ShiftViTError, match="do not fit its own model configuration"):
        Bundle.load(folder).build()
    with pytest.raises(ShiftViTError, match="do not fit its own model configuration"):
        apply_start(Recipe.load("finetune", **{"start.source": str(folder)}))


@pytest.mark.parametrize(
    "change", [{"depths": [1] * 17}, {"embed_dim": 10**400}, {"mlp_ratio": 1e308}, {"patch_size": 10**400}], ids=str
)
def test_configuration_out_of_range_fails(folder, change):
    tree = json.loads((folder / MANIFEST).read_text())
    edit_manifest(folder, model={**tree["model"], **change})
    with pytest.raises(ShiftViTError, match=f"is not a valid bundle: model.{next(iter(change))}: "):
        Bundle.load(folder)


def test_manifest_that_lists_other_files_fails(folder):
    known = json.loads((folder / MANIFEST).read_text())["files"]
    for files in ({"../../etc/passwd": "0" * 64}, known | {"../../etc/passwd": "0" * 64}, {}):
        edit_manifest(folder, files=files)
        with pytest.raises(ShiftViTError, match="lists the files"):
            Bundle.load(folder)


def test_paths_without_a_bundle_fail(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShiftViTError, match=r"does not exist; .*cifar10$"):
        Bundle.load("bundle/pets")
    with pytest.raises(ShiftViTError, match="does not exist"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(ShiftViTError, match=r"does not exist; .*cifar10; if it is on .* Hub: shiftvit pull me/pets$"):
        Bundle.load("me/pets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShiftViTError, match="is not a bundle and contains none"):
        Bundle.load(tmp_path / "empty")
    bundle = Bundle.load(folder)
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(ShiftViTError, match="is not replaced"):
        bundle.save(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ShiftViTError, match=r"cannot write|is not replaced"):
        bundle.save(tmp_path / "file" / "bundle")


@pytest.fixture
def archive(folder, tmp_path):
    return Bundle.load(folder).save(tmp_path / "bundle.zip")


def assert_load_fails(path, message):
    """Asserts that loading fails with one line that names the bundle."""
    with pytest.raises(ShiftViTError, match=message) as caught:
        Bundle.load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def rewrite_archive(archive, changes, method=zipfile.ZIP_STORED):
    """Rewrites the archive with changed contents: name -> bytes, or None to leave the entry out."""
    with zipfile.ZipFile(archive) as old:
        contents = {name: old.read(name) for name in old.namelist()} | changes
    with zipfile.ZipFile(archive, "w", method) as new:
        for name, content in contents.items():
            if content is not None:
                new.writestr(name, content)


def test_archive_holds_the_files_of_the_folder(folder, archive):
    bundle = Bundle.load(folder)
    assert_equal_bundles(Bundle.load(archive), bundle)
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }
    bundle.save(archive)  # overwrites the bundle it was loaded from
    assert sorted(path.name for path in archive.parent.iterdir()) == [folder.name, archive.name]
    # Equal bundles give equal files, whenever and wherever they are written.
    other = archive.with_name("other.zip")
    assert Bundle.load(archive).save(other).read_bytes() == archive.read_bytes()


def test_compressed_archive_loads(folder, archive):
    rewrite_archive(archive, {}, zipfile.ZIP_DEFLATED)
    assert_equal_bundles(Bundle.load(archive), Bundle.load(folder))


@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.95, 0.999])
def test_truncated_archive_fails(archive, fraction):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(fraction * len(content))])
    assert_load_fails(archive, "is not a bundle and contains none|cannot be read")


def test_changed_archive_fails(archive):
    original = archive.read_bytes()
    tree = json.loads(zipfile.ZipFile(io.BytesIO(original)).read(MANIFEST))
    changed = json.dumps(tree | {"format": 2}).encode()
    for changes, message in (
        ({WEIGHTS: None}, "it is not in the archive"),
        ({WEIGHTS: b"other"}, "is damaged: its SHA-256"),
        ({MANIFEST: changed}, "has format 2; this shiftvit reads up to 1; update"),
        ({MANIFEST: b"\xff"}, "cannot be read"),
        ({MANIFEST: b"{" * 100_000}, "cannot be read"),
        ({MANIFEST: json.dumps(tree | {"labels": ["a", "b", "\ud800"]}).encode()}, "cannot be read .*surrogates"),
        ({MANIFEST: None, f"bundle/{MANIFEST}": changed}, "is not a bundle and contains none"),
    ):
        archive.write_bytes(original)
        rewrite_archive(archive, changes)
        assert_load_fails(archive, message)


def test_unknown_archive_entries_are_ignored(folder, archive, tmp_path):
    rewrite_archive(archive, {"../outside": b"!", "weights.pkl": b"cos\nsystem\n(S'touch outside'\ntR.", GRAPH: b"!"})
    loaded = Bundle.load(archive)
    assert_equal_bundles(loaded, Bundle.load(folder))
    assert loaded.graph is None  # the manifest does not list it, so it has no hash
    assert not list(tmp_path.rglob("*outside*"))


def test_archive_that_unpacks_to_a_huge_size_fails(archive):
    rewrite_archive(archive, {WEIGHTS: bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert_load_fails(archive, "would unpack to 67,108,864 bytes")


def test_invalid_weights_with_a_matching_hash_fail_without_running_code(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        tree = json.loads(opened.read(MANIFEST))
    trap = pickle.dumps(Attack(tmp_path / "sprung"))
    array = io.BytesIO()
    np.save(array, np.array([Attack(tmp_path / "sprung")]), allow_pickle=True)
    # A safetensors file begins with the length of its header. Missing, absurd, and a header that is not an object.
    for content in (b"", b"\xff" * 8, (2).to_bytes(8, "little") + b"[]", trap, array.getvalue()):
        text = json.dumps(tree | {"files": {WEIGHTS: hash_content(content)}})
        rewrite_archive(archive, {WEIGHTS: content, MANIFEST: text.encode()})
        assert_load_fails(archive, f"'{WEIGHTS}' in .* cannot be read")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()


def test_halved_rounds_weights_to_float16(model, folder, tmp_path):
    set_random_weights(model)
    bundle = Bundle.from_model(model, ("a", "b", "c"), Preprocess())
    halved = dataclasses.replace(bundle, graph=b"of other weights").halved()
    assert halved.graph is None
    loaded = Bundle.load(halved.save(tmp_path / "half.zip"))
    for path, value in bundle.weights.items():
        assert loaded.weights[path].dtype == np.float16
        # float16 has eleven significant bits; rounding errs by at most half a unit in the last.
        np.testing.assert_allclose(loaded.weights[path], value, rtol=2**-11, atol=2**-25)
    assert (tmp_path / "half.zip").stat().st_size < 0.6 * (folder / WEIGHTS).stat().st_size
    built = {variable.path: np.asarray(variable.numpy()) for variable in loaded.build().weights}
    for path, value in loaded.weights.items():
        assert built[path].dtype == np.float32
        np.testing.assert_array_equal(built[path], value.astype(np.float32))
    assert_equal_bundles(loaded.halved(), loaded)


def test_weights_beyond_float16_cannot_be_halved(folder):
    bundle = Bundle.load(folder)
    path = next(iter(bundle.weights))
    large = bundle.weights[path].copy()
    large.flat[0] = 65504
    assert dataclasses.replace(bundle, weights={**bundle.weights, path: large}).halved().weights[path].max() == 65504
    large.flat[0] = 70000
    with pytest.raises(ShiftViTError, match=f"'{path}' has values beyond 65504"):
        dataclasses.replace(bundle, weights={**bundle.weights, path: large}).halved()


@pytest.mark.parametrize("name", ["with.zip", "with"])
def test_graph_is_saved_and_verified(folder, name, tmp_path):
    bundle = dataclasses.replace(Bundle.load(folder), graph=bytes(range(256)) * 9)
    path = bundle.save(tmp_path / "new" / name)
    assert_equal_bundles(Bundle.load(path), bundle)
    if path.suffix:
        rewrite_archive(path, {GRAPH: bundle.graph[:-1]})
    else:
        assert sorted(entry.name for entry in path.iterdir()) == sorted([MANIFEST, WEIGHTS, GRAPH, CARD])
        (path / GRAPH).write_bytes(bundle.graph[:-1])
    assert_load_fails(path, f"'{GRAPH}' in .* is damaged: its SHA-256 differs from the recorded one; restore it")


@pytest.mark.parametrize("name", ["with.zip", "with"])
def test_card_is_saved_and_may_be_edited(folder, name, tmp_path):
    written = Bundle.load(folder)
    assert written.card.startswith("---\nlibrary_name:")
    assert CARD not in json.loads((folder / MANIFEST).read_text())["files"]
    bundle = dataclasses.replace(written, card="# Ours\r\n\nü\n")
    path = bundle.halved().save(tmp_path / name)
    assert Bundle.load(path).card == bundle.card
    for content, found in (
        ("# Edited é".encode(), "# Edited é"),
        (b"\xff\xfe no UTF-8", "\ufffd\ufffd no UTF-8"),
        (b"x" * (2**20 + 1), None),
        (b"", ""),
        (None, None),
    ):
        if path.suffix:
            rewrite_archive(path, {CARD: content}, zipfile.ZIP_DEFLATED)
        elif content is None:
            (path / CARD).unlink()
        else:
            (path / CARD).write_bytes(content)
        loaded = Bundle.load(path)
        assert loaded.card == found
        assert_equal_bundles(dataclasses.replace(loaded, card=bundle.card), bundle.halved())
    # Saving a bundle without a card writes a new one from what the bundle holds.
    loaded.save(path)
    assert "| test | 50.00% |" in Bundle.load(path).card


def test_unreadable_card_is_ignored(folder, archive):
    (folder / CARD).unlink()
    (folder / CARD).mkdir()
    assert Bundle.load(folder).card is None
    rewrite_archive(archive, {CARD: bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert Bundle.load(archive).card is None


def test_save_does_not_overwrite_other_files(folder, tmp_path):
    bundle = Bundle.load(folder)
    for name, content in (("notes.zip", b"mine"), ("photos.zip", None)):
        path = tmp_path / name
        if content is None:
            with zipfile.ZipFile(path, "w") as opened:
                opened.writestr("photo.jpg", b"mine")
        else:
            path.write_bytes(content)
        before = path.read_bytes()
        with pytest.raises(ShiftViTError, match="exists and is not a bundle, so it is not replaced"):
            bundle.save(path)
        assert path.read_bytes() == before


def test_packaged_models_load_by_name(folder, tmp_path, monkeypatch):
    assert "cifar10" in list_pretrained()
    bundle = Bundle.load("cifar10")
    assert len(bundle.labels) == bundle.config.num_classes == 10
    assert {value.dtype.name for value in bundle.weights.values()} == {"float16"}
    assert bundle.graph
    assert {MANIFEST, WEIGHTS, GRAPH} <= {path.name for path in (PRETRAINED / "cifar10").iterdir()}
    with pytest.raises(ShiftViTError, match=r"'cifar1' does not exist; give .* one of the names: .*cifar10"):
        Bundle.load("cifar1")
    # The folder of samples is not a model, and a name is not a path into the package.
    for name in ("samples", "cifar10/", "../pretrained/cifar10", ""):
        with pytest.raises(ShiftViTError, match=r"does not exist|contains none"):
            Bundle.load(name)
    # A path that exists takes precedence.
    monkeypatch.chdir(tmp_path)
    Bundle.load(folder).save("cifar10")
    assert Bundle.load("cifar10").labels == ("a", "b", "c")


INVALID_LABELS = {
    "a dict": ({0: "a", 1: "b", 2: "c"}, "labels are of the type dict; give a list in the order of the logits"),
    "a set": ({"a", "b", "c"}, "labels are of the type set"),
    "one word": ("abc", "labels are of the type str"),
    "nothing": (None, "labels are of the type NoneType"),
    "numbers": ((0, 1, 2), "the label 0 is not a class name; give strings"),
    "bytes": ((b"a", b"b", b"c"), "the label b'a' is not a class name"),
    "an empty name": (("a", "", "c"), "the label '' is not a class name"),
    "half a surrogate pair": (("a", "b", "\ud800"), "is not valid Unicode|surrogates not allowed"),
    "repeats": (("a", "b", "a"), "the label 'a' names 2 classes; give each class its own name"),
    "too few": (("a", "b"), "2 labels do not name 3 classes; give one for each"),
    "too many": (("a", "b", "c", "d"), "4 labels do not name 3 classes; give one for each"),
}


@pytest.mark.parametrize("kind", INVALID_LABELS)
def test_invalid_labels_fail(kind, model, folder, tmp_path):
    labels, message = INVALID_LABELS[kind]
    with pytest.raises(ShiftViTError, match=message):
        Bundle.from_model(model, labels, Preprocess())
    bundle = dataclasses.replace(Bundle.load(folder), labels=labels)
    with pytest.raises(ShiftViTError, match=message):
        bundle.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    if isinstance(labels, tuple) and isinstance(labels[0], str):
        edit_manifest(folder, labels=labels)
        assert_load_fails(folder, message)


def test_labels_of_any_iterable_become_strings(model):
    for labels in (["a", "b", "c"], iter("abc"), np.array(["a", "b", "c"])):
        kept = Bundle.from_model(model, labels, Preprocess()).labels
        assert kept == ("a", "b", "c")
        assert {type(label) for label in kept} == {str}


def test_from_model_rejects_other_types(model):
    import keras

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    for given, kind in ((other, "Sequential"), (model.backbone, "ShiftViTBackbone"), (None, "NoneType")):
        with pytest.raises(ShiftViTError, match=f"model has the type {kind}; a bundle holds a ShiftViT"):
            Bundle.from_model(given, ("a", "b", "c"), Preprocess())
    with pytest.raises(ShiftViTError, match="preprocess has the type dict; a bundle holds a Preprocess"):
        Bundle.from_model(model, ("a", "b", "c"), {"mean": 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1), {1, 2}])
def test_metrics_that_json_cannot_hold_fail(value, model, tmp_path):
    with pytest.raises(ShiftViTError, match="the metrics cannot be written as JSON: "):
        Bundle.from_model(model, ("a", "b", "c"), Preprocess(), {"top1": value}).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_are_saved_whatever_their_memory_order(tmp_path):
    model = ShiftViT((16, 16, 3), num_classes=2, embed_dim=24, depths=(1,))
    bundle = Bundle.from_model(model, ("a", "b"), Preprocess())
    kernel = np.arange(48, dtype=np.float32).reshape(2, 24).T  # in column-major order
    dataclasses.replace(bundle, weights={**bundle.weights, "head/kernel": kernel}).save(tmp_path / "model")
    np.testing.assert_array_equal(Bundle.load(tmp_path / "model").weights["head/kernel"], kernel)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cifar10", "cifar10"),
        ("runs/3", "3"),
        ("runs/cats/bundle", "cats"),
        ("runs/cats.v2/bundle/", "cats.v2"),
        ("models/cats.zip", "cats"),
        ("bundle", "pets"),
        (".", "pets"),
        ("deep/..", "pets"),
        ("/", "model"),
        ("/bundle", "model"),
    ],
)
def test_short_name_of_a_model(path, name, tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert choose_name(path) == name


def test_bundle_may_be_saved_to_an_empty_folder(tmp_path):
    Bundle.load("cifar10").save(tmp_path)
    assert Bundle.load(tmp_path).labels == Bundle.load("cifar10").labels


def test_export_is_named_where_a_bundle_is_needed(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ShiftViTError, match=r"is an export, which can only predict; give the run or the bundle that"):
        Bundle.load(tmp_path)
