"""A model gives the same answers in every runtime, and an artifact that cannot run is refused in one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pickle
import random
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from exported import SINGLE, compute_probabilities, find_artifact, make_export
from sample import load_sample
from shiftvit import Bundle, Predictor, Preprocess, ShiftViT, ShiftViTError
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.bundle.stored.manifest import GRAPH
from shiftvit.inference import worker
from shiftvit.inference.explainer import Explainer
from shiftvit.inference.runtimes import RUNTIMES, load_graph
from threads import answer_together

# Libraries warn when they load their own files.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

NATIVE = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "saved_model": "tensorflow",
    "litert": "litert",
    "torch": "torch",
}


def skip_without(runtime):
    if importlib.util.find_spec(RUNTIMES[runtime].module) is None:
        pytest.skip(f"{runtime} is not installed")


@pytest.fixture(scope="module")
def probabilities(images):
    return compute_probabilities(Bundle.load("cifar10"), images[:64])


def assert_same_answers(graph, runtime, images, probabilities):
    assert graph.runtime == runtime
    assert graph.metadata.labels == Bundle.load("cifar10").labels
    for size in (64, 1, 9):
        found = graph.run(images[:size])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, probabilities[:size], atol=1e-4)
    # The memory layout makes no difference: a mirrored view, and its copy.
    view = images[:5, :, ::-1]
    np.testing.assert_array_equal(graph.run(view), graph.run(view.copy()))


@pytest.mark.parametrize("runtime", ["keras", "onnxruntime", "openvino"])
def test_bundle_gives_the_same_answers_in_every_runtime(runtime, images, probabilities):
    skip_without(runtime)
    assert_same_answers(load_graph("cifar10", runtime, threads=1), runtime, images, probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("make", [make_export, find_artifact])
def test_export_gives_the_same_answers_in_its_runtime(name, make, images, probabilities):
    assert_same_answers(load_graph(make(name), NATIVE[name]), NATIVE[name], images, probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SINGLE if name != "saved_model"])
def test_suffix_may_have_capitals(name, images, tmp_path):
    artifact = find_artifact(name)
    for path in artifact.parent.glob(f"{artifact.stem}.*"):
        shutil.copy(path, tmp_path / (path.stem + path.suffix.upper()))
    upper = tmp_path / (artifact.stem + artifact.suffix.upper())
    graphs = [load_graph(path, NATIVE[name], threads=1) for path in (artifact, upper)]
    np.testing.assert_array_equal(*(graph.run(images[:4]) for graph in graphs))


def assert_threads_agree(model, runtime):
    skip_without(runtime)
    assert answer_together(load_graph(model, runtime).run, load_sample().test.images[:16]) < 1e-5


@pytest.mark.parametrize("runtime", [pytest.param("keras", marks=pytest.mark.slow), "onnxruntime", "openvino"])
def test_threads_share_the_model_of_a_bundle(runtime):
    assert_threads_agree("cifar10", runtime)


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_threads_share_an_export(name):
    assert_threads_agree(make_export(name), NATIVE[name])


@pytest.mark.slow
def test_threads_load_at_the_same_time(plain):
    with ThreadPoolExecutor(8) as pool:
        graphs = list(pool.map(lambda _: load_graph(plain), range(8)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert len({graph.run(pixels).tobytes() for graph in graphs}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_pickled_export_keeps_its_runtime(name, images, probabilities):
    graph = load_graph(make_export(name), NATIVE[name], threads=1)
    content = pickle.dumps(graph)
    assert len(content) < 1000
    assert_same_answers(pickle.loads(content), NATIVE[name], images, probabilities)


def test_pickled_graph_keeps_its_path_and_options(plain, monkeypatch):
    monkeypatch.chdir(plain.parent)
    content = pickle.dumps(load_graph("plain", threads=1))
    monkeypatch.chdir("/")
    graph = pickle.loads(content)
    assert (graph.model, graph.runtime, graph.threads) == (str(plain), "keras", 1)
    assert pickle.loads(pickle.dumps(load_graph("cifar10"))).model == "cifar10"
    shutil.rmtree(plain)
    with pytest.raises(ShiftViTError, match="plain' does not exist"):
        pickle.loads(content)


@pytest.mark.slow
def test_onnx_gives_the_same_answers_in_openvino(images, probabilities):
    skip_without("openvino")
    assert_same_answers(load_graph(find_artifact("onnx"), "openvino"), "openvino", images, probabilities)


@pytest.fixture
def plain(tmp_path):
    """A bundle without a graph."""
    model = ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1))
    return Bundle.from_model(model, ("a", "b", "c"), Preprocess()).save(tmp_path / "plain")


def hide_modules(monkeypatch, *modules):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else found(name))


def test_auto_chooses_the_first_installed_runtime(plain, monkeypatch):
    assert load_graph(plain).runtime == "keras"
    assert load_graph("cifar10").runtime == "onnxruntime"
    hide_modules(monkeypatch, "onnxruntime", "openvino")
    assert load_graph("cifar10").runtime == "keras"


@pytest.mark.parametrize(
    ("missing", "runtime", "package"),
    [
        ("onnxruntime", "onnxruntime", "onnxruntime"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_missing_runtime_is_refused(missing, runtime, package, monkeypatch):
    hide_modules(monkeypatch, missing)
    with pytest.raises(ShiftViTError, match=f"{runtime}' is not installed; pip install '{package}>="):
        load_graph("cifar10", runtime)


def test_unsuitable_runtime_is_refused(plain, tmp_path):
    with pytest.raises(ShiftViTError, match="there is no runtime 'onxruntime'; did you mean 'onnxruntime'"):
        load_graph("cifar10", "onxruntime")
    with pytest.raises(
        ShiftViTError, match="runs in onnxruntime or openvino or keras, not in litert; write another format"
    ):
        load_graph("cifar10", "litert")
    with pytest.raises(
        ShiftViTError, match=r"runs in keras, not in onnxruntime; add the graph with `shiftvit pack --onnx`"
    ):
        load_graph(plain, "onnxruntime")
    (tmp_path / "model.tflite").write_bytes(b"")
    with pytest.raises(
        ShiftViTError, match=r"\(LiteRT\) runs in litert, not in keras; write another format with `shiftvit export`"
    ):
        load_graph(tmp_path / "model.tflite", "keras")
    with pytest.raises(ShiftViTError, match="does not exist; give a run folder"):
        load_graph(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShiftViTError, match="is not a bundle and contains none"):
        load_graph(tmp_path / "empty")


def test_damaged_graph_of_a_bundle_is_refused(tmp_path):
    bundle = dataclasses.replace(Bundle.load("cifar10"), graph=b"no graph")
    with pytest.raises(ShiftViTError, match=r"bundle.zip' cannot be loaded \("):
        load_graph(bundle.save(tmp_path / "bundle.zip"), "onnxruntime")
    folder = Bundle.load("cifar10").save(tmp_path / "folder")
    content = bytearray((folder / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / GRAPH).write_bytes(content)
    for runtime in ("onnxruntime", "openvino"):
        skip_without(runtime)
        with pytest.raises(ShiftViTError, match=f"'{GRAPH}' in .* is damaged: its SHA-256 differs"):
            load_graph(folder, runtime)


def catch_refusal(path, capfd, runtime="auto"):
    """Returns the message of a failed load: one line that names the path, with nothing on standard output."""
    with pytest.raises(ShiftViTError) as caught:
        load_graph(path, runtime)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not capfd.readouterr().out
    return str(caught.value)


VARIABLES = "saved_model/variables/variables.data-00000-of-00001"
FILES = [
    ("onnx", "model.onnx"),
    ("openvino", "model.xml"),
    ("openvino", "model.bin"),
    ("saved_model", "saved_model/saved_model.pb"),
    ("saved_model", VARIABLES),
    ("saved_model", "saved_model/variables/variables.index"),
    ("saved_model", "saved_model/assets.extra/shiftvit.json"),
    ("litert", "model.tflite"),
    ("torch", "model.pt2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), FILES, ids=[file for _, file in FILES])
def test_damaged_export_is_refused(name, file, tmp_path, capfd):
    folder = tmp_path / "export"
    shutil.copytree(make_export(name), folder)
    good = (folder / file).read_bytes()
    for content in (good[: len(good) // 2], good[:30], b"", b"\xff" * 5000, None):
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        catch_refusal(folder, capfd, NATIVE[name])
    (folder / file).write_bytes(good)
    assert load_graph(folder, NATIVE[name]).runtime == NATIVE[name]


def test_input_name_that_is_not_utf8_is_refused(tmp_path, capfd):
    """ONNX Runtime itself would report its second attempt on standard output."""
    content = Bundle.load("cifar10").graph
    assert b"images" in content
    (tmp_path / "model.onnx").write_bytes(content.replace(b"images", b"imag\xff\xff", 1))
    catch_refusal(tmp_path / "model.onnx", capfd)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "rounds"),
    [
        ("onnx", "model.onnx", 40),
        ("openvino", "model.xml", 40),
        ("litert", "model.tflite", 40),
        ("torch", "model.pt2", 10),
        ("saved_model", "saved_model/saved_model.pb", 10),
        ("saved_model", "saved_model/assets.extra/shiftvit.json", 10),
    ],
)
def test_flipped_bytes_load_or_fail_in_one_line(name, file, rounds, tmp_path):
    """A graph has no hash, so some damage goes unnoticed. Noticed damage is always a `ShiftViTError`."""
    folder = tmp_path / "export"
    shutil.copytree(make_export(name), folder)
    good, draw, failures = (folder / file).read_bytes(), random.Random(name + file), []
    for _ in range(rounds):
        content = bytearray(good)
        for _ in range(draw.choice([1, 3, 10])):
            # The structure is at both ends, the weights between them.
            place = draw.choice([draw.randrange(len(good)), *(sign * draw.randrange(1, 400) for sign in (1, -1))])
            content[place] = draw.randrange(256)
        (folder / file).write_bytes(content)
        try:
            load_graph(folder, NATIVE[name])
        except ShiftViTError as error:
            failures.append(str(error))
    assert len(failures) >= rounds // 10
    assert not [line for line in failures if "\n" in line or str(folder) not in line]


@pytest.mark.parametrize(
    ("name", "content", "runtime"), [("model.pt2", "", "torch"), ("saved_model", "saved_model.pb", "tensorflow")]
)
def test_executable_formats_need_an_explicit_runtime(name, content, runtime, tmp_path):
    if content:
        (tmp_path / name).mkdir()
    (tmp_path / name / content).write_bytes(b"whatever")
    message = f"can execute code when loaded; if you trust it, add --runtime {runtime}$"
    for model in (tmp_path / name, tmp_path):
        with pytest.raises(ShiftViTError, match=message):
            load_graph(model)


def test_folder_of_several_exports_asks_for_one(tmp_path):
    folder = tmp_path / "my models"
    folder.mkdir()
    for name in ("model.tflite", "model.onnx", "report.json"):
        (folder / name).write_bytes(b"whatever")
    with pytest.raises(ShiftViTError) as caught:
        load_graph(folder)
    assert str(caught.value) == (
        f"{str(folder)!r} holds several models (model.onnx, model.tflite); name one: --model '{folder}/model.onnx'"
    )
    shutil.copytree(PRETRAINED / "cifar10", folder / "bundle")
    assert load_graph(folder).metadata.labels == Bundle.load("cifar10").labels  # a run folder


@pytest.mark.slow
def test_graphs_without_metadata_are_refused(tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(find_artifact("onnx"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    content = find_artifact("litert").read_bytes()
    with zipfile.ZipFile(find_artifact("litert")) as archive:
        (tmp_path / "foreign.tflite").write_bytes(content[: min(entry.header_offset for entry in archive.infolist())])
    text = find_artifact("openvino").read_text("utf-8")
    (tmp_path / "foreign.xml").write_text(text.replace("<shiftvit", "<other").replace("</shiftvit", "</other"))
    shutil.copy(find_artifact("openvino").with_suffix(".bin"), tmp_path / "foreign.bin")
    for suffix in ("onnx", "tflite", "xml"):
        line = catch_refusal(tmp_path / f"foreign.{suffix}", capfd)
        assert "has no shiftvit metadata, so its labels and preprocessing are unknown" in line
        assert line.endswith("and copy the file again if it may be cut off")


@pytest.mark.slow
def test_graph_with_wrong_number_of_labels_is_refused(tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(find_artifact("onnx"))
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"airplane",', "")
    onnx.save(model, tmp_path / "nine.onnx")
    line = catch_refusal(tmp_path / "nine.onnx", capfd)
    assert "returns the shape (10,) for one image but has 9 labels" in line


@pytest.mark.parametrize("load", [lambda path: load_graph(path, "onnxruntime"), Explainer.from_pretrained])
def test_graph_with_other_classes_than_its_bundle_is_refused(load, tmp_path):
    shutil.copytree(PRETRAINED / "cifar10", tmp_path / "mine")
    manifest = tmp_path / "mine" / "bundle.json"
    about = json.loads(manifest.read_text("utf-8"))
    about["labels"][0] = "aircraft"
    manifest.write_text(json.dumps(about), "utf-8")
    with pytest.raises(
        ShiftViTError, match=r"the classes in the graph of .*mine'? differ from the bundle's; restore the bundle"
    ):
        load(tmp_path / "mine")


@pytest.mark.slow
def test_worker_loads_a_model_of_several_files(images, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    skip_without("openvino")
    artifact = find_artifact("openvino")
    model = worker.read_model("predict", str(artifact), "auto")
    assert len(model.files) == 2
    monkeypatch.setattr(ray, "get", lambda files: files)
    actor = worker.Worker(
        worker.Task("predict", str(tmp_path), kind="jsonl", runtime=model.runtime, threads=1), model.files
    )
    found = actor._load()(images[:8])
    expected = Predictor.from_pretrained(artifact, threads=1)(images[:8])
    assert [row.label for row in found] == [row.label for row in expected]
