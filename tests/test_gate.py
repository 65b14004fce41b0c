"""The parity gate: it rejects exports that answer differently, names the reason, and leaves no files behind."""

from __future__ import annotations

import functools
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import command_line
from exported import compute_probabilities, load_answers
from sample import load_sample
from shiftvit import Bundle, Preprocess, ShiftViT, ShiftViTError
from shiftvit.bundle.metadata import KEY
from shiftvit.data import named
from shiftvit.exports import export, gate
from shiftvit.exports.arrays import open_arrays, save_arrays
from shiftvit.exports.formats import find_format
from tensors import set_random_weights

onnx = pytest.importorskip("onnx")
faults = pytest.importorskip("planted_faults")


def make_probabilities(count, wrong=0):
    """Returns probabilities of two classes that favour the first, except for `wrong` images."""
    found = np.tile(np.float32([0.75, 0.25]), (count, 1))
    found[:wrong] = found[:wrong, ::-1]
    return found


def test_float32_may_differ_by_at_most_1e_4():
    expected = make_probabilities(5)
    for distance, faults in (
        (0.0, []),
        (9e-5, []),
        (1.1e-4, ["a probability differs by 1.1e-04; in float32 at most 1e-04 is allowed"]),
    ):
        found = expected.copy()
        found[3] += np.float32([distance, -distance])
        report = gate.compare(found, expected, None, "f32")
        assert report["faults"] == faults
        assert report["max_difference"] == pytest.approx(distance, abs=1e-7)
        assert (report["images"], report["top1_agreement"]) == (5, 1)
        assert "top1" not in report


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("count", "labelled", "wrong", "wrong_before", "fault"),
    [
        (2000, True, 0, 0, None),
        (2000, True, 10, 0, None),
        (2000, True, 11, 0, "top-1 falls by 0.55 points; {} may cost at most 0.5"),
        (2000, True, 0, 11, None),
        (4000, True, 20, 0, None),
        (4000, True, 22, 0, "top-1 falls by 0.55 points; {} may cost at most 0.5"),
        (1999, True, 0, 0, "1,999 labelled images cannot measure what {} costs; at least 2000 are needed"),
        (2000, False, 0, 0, "0 labelled images cannot measure what {} costs; at least 2000 are needed"),
    ],
)
def test_narrow_precisions_may_lose_half_a_point_of_top1(count, labelled, wrong, wrong_before, fault, precision):
    labels = np.zeros(count, np.int64) if labelled else None
    report = gate.compare(make_probabilities(count, wrong), make_probabilities(count, wrong_before), labels, precision)
    assert report["faults"] == ([] if fault is None else [fault.format(precision)])
    assert report["top1_agreement"] == 1 - (wrong + wrong_before) / count
    if labelled:
        assert report["top1"] == 1 - wrong / count
        assert report["top1_model"] == 1 - wrong_before / count
        assert report["top1_change"] == pytest.approx(100 * (wrong_before - wrong) / count, abs=1e-4)


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8"])
@pytest.mark.parametrize(("total", "passes"), [(1.0009, True), (1.0011, False), (0.9991, True), (0.9989, False)])
def test_probabilities_add_up_to_1(total, passes, precision):
    expected, labels = make_probabilities(2000), np.zeros(2000, np.int64)
    found = expected.copy()
    found[17] *= np.float32(total)
    faults = gate.compare(found, expected, labels, precision, limit=2e-3)["faults"]
    assert faults == ([] if passes else [f"the probabilities of an image add up to {total}; it must be 1 within 1e-03"])


@pytest.mark.parametrize(("wrong", "passes"), [(10, True), (11, False)])
def test_int8_may_lose_half_a_point_of_top5(wrong, passes):
    """The right class is the second of seven, and the last one, or equal to the last, in the wrong answers."""
    expected = np.tile(np.float32([0.4, 0.3, 0.1, 0.08, 0.06, 0.04, 0.02]), (2000, 1))
    found, labels = expected.copy(), np.ones(2000, np.int64)
    found[: wrong // 2, [1, 6]] = found[: wrong // 2, [6, 1]]
    found[wrong // 2 : wrong] = np.float32([0.4, *[0.1] * 6])
    report = gate.compare(found, expected, labels, "int8")
    assert (report["top5"], report["top5_model"]) == (1 - wrong / 2000, 1)
    assert report["faults"] == ([] if passes else ["top-5 falls by 0.55 points; int8 may cost at most 0.5"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_non_finite_probabilities_fail(value, precision):
    good, bad, labels = make_probabilities(2000), make_probabilities(2000), np.zeros(2000, np.int64)
    bad[17, 1] = value
    assert gate.compare(bad, good, labels, precision)["faults"] == ["it returns numbers that are not finite"]
    (fault,) = gate.compare(good, bad, labels, precision)["faults"]
    assert fault == "the model itself returns numbers that are not finite"


def test_wrong_shapes_fail():
    for found in (np.ones((5, 3), np.float32), np.ones((4, 2), np.float32), np.ones(10, np.float32)):
        (fault,) = gate.compare(found, make_probabilities(5), None, "f32")["faults"]
        assert fault == f"it returns an array of shape {found.shape}, but the model (5, 2)"


EXPECTED_FAULTS = {
    faults.rewrite_metadata: [],
    faults.scale_weights: ["a probability differs by "],
    faults.insert_nan: ["it returns numbers that are not finite", "in a batch of 1 a", "in a batch of 257 a"],
    faults.swap_colours: ["a probability differs by "],
    faults.undo_normalisation: ["a probability differs by "],
    faults.halve_in_large_batches: ["in a batch of 257 a probability differs by "],
    faults.reverse_labels: ["its metadata are not the model's"],
}


@functools.cache
def load_first_answers():
    """Returns test images of the sample, their labels, and the packaged model's probabilities."""
    test = load_sample().test
    return test.images[:20], test.labels[:20], compute_probabilities(Bundle.load("cifar10"), test.images[:20])


def run_gate(plant_fault, tmp_path, capsys, precision="f32"):
    """Plants a fault into the graph of the packaged model and returns the report of the gate."""
    bundle = Bundle.load("cifar10")
    model = onnx.load_from_string(bundle.graph)
    metadata = next(entry.value for entry in model.metadata_props if entry.key == KEY)
    plant_fault(model)
    onnx.save(model, tmp_path / "model.onnx")
    if precision == "f32":
        images, labels, probabilities = load_first_answers()
    else:  # the 2,000 that a narrow precision needs, which other tests need too
        answers = load_answers()
        images, labels, probabilities = answers.images, answers.labels, answers.probabilities
    save_arrays(tmp_path / "images", {"images": images, "labels": labels})
    np.savez(tmp_path / "reference.npz", probabilities=probabilities.astype(np.float32))
    job = {
        "artifact": str(tmp_path / "model.onnx"),
        "format": "onnx",
        "precision": precision,
        "runtime": "onnxruntime",
        "metadata": metadata,
        "images": str(tmp_path / "images"),
        "reference": str(tmp_path / "reference.npz"),
        "threads": 1,
        "seconds": 0.01,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    gate.main(str(tmp_path / "job.json"))
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("plant_fault", EXPECTED_FAULTS)
def test_planted_faults_are_found(plant_fault, tmp_path, capsys):
    report = run_gate(plant_fault, tmp_path, capsys)
    for fault, begin in zip(report["faults"], EXPECTED_FAULTS[plant_fault], strict=True):
        assert fault.startswith(begin)
    # The speed is measured only if the export passes.
    assert report.get("images_per_second", {}).keys() == (set() if EXPECTED_FAULTS[plant_fault] else {"1", "64"})
    assert min(report.get("images_per_second", {"none": 1}).values()) > 0
    if plant_fault is faults.rewrite_metadata:
        assert report["max_difference"] <= 1e-5
        assert report["runtime"] == "onnxruntime"


@pytest.mark.parametrize(("side", "largest"), [(32, 257), (64, 257), (224, 83), (384, 29), (2048, 3)])
def test_batches_of_large_images_are_limited_to_fit_memory(side, largest):
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return np.full((len(batch), 2), 0.5 if len(batch) < 3 else 0.6)

    images = np.zeros((1, side, side, 3), np.uint8)
    (fault,) = gate._check_sizes(SimpleNamespace(run=run), images, np.full((1, 2), 0.5), "f32")
    assert sizes == [1, largest]
    assert fault == f"in a batch of {largest} a probability differs by 1.0e-01 from that in a batch of 64"


@pytest.mark.slow
def test_planted_fault_lowers_top1_in_int8(tmp_path, capsys):
    report = run_gate(faults.undo_normalisation, tmp_path, capsys, "int8")
    assert report["faults"][0].startswith("top-1 falls by ")
    assert report["top1_change"] < -10
    assert report["top1_model"] == (load_answers().probabilities.argmax(axis=1) == load_answers().labels).mean()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1))
    set_random_weights(model)
    place = tmp_path_factory.mktemp("small") / "small"
    return Bundle.from_model(model, ("a", "b", "c"), Preprocess(mean=120.0, std=60.0)).save(place)


def run_export(*arguments, **environment):
    """Runs `shiftvit export` here, whose steps run in processes of their own with this environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        ran = command_line.run("export", *arguments, cwd=Path.cwd())
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def write_sitecustomize(tmp_path, program):
    """Returns a PYTHONPATH with which every Python process first runs a program."""
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "sitecustomize.py").write_text(program)
    return str(tmp_path / "plant")


IF_BUILDING = "import sys\nif 'shiftvit.exports.build' in sys.orig_argv:\n    "
RAISE_ERROR = (
    IF_BUILDING + "from shiftvit.bundle.bundle import Bundle\n"
    "    def load(path):\n"
    "        raise RuntimeError('two\\nlines')\n"
    "    Bundle.load = load\n"
)
KILL_PROCESS = IF_BUILDING + f"import os\n    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param(
            RAISE_ERROR, "the step 'build' of the export failed: RuntimeError: two (--debug shows its full output)"
        ),
        pytest.param(KILL_PROCESS, "the step 'build' of the export failed: signal 9 ended it (--debug"),
    ],
    ids=["raises", "killed"],
)
def test_failed_export_prints_one_line_and_keeps_the_earlier_one(program, message, bundle, tmp_path):
    out = tmp_path / "out"
    for earlier in (False, True):
        if earlier:
            out.mkdir()
            (out / export.REPORT).write_text("{}")
            (out / "model.onnx").write_bytes(b"earlier")
        path = tmp_path / "plant"
        python_path = str(path) if path.exists() else write_sitecustomize(tmp_path, program)
        status, printed, said = run_export(bundle, "--out", out, PYTHONPATH=python_path)
        assert status == 2, said
        *notices, last = said.strip().splitlines()
        assert last.startswith(f"shiftvit: {message}")
        assert notices[0] == "shiftvit: building onnx in f32"
        assert len(notices) <= 2
        assert not printed
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "plant"][not earlier :]
        if earlier:
            assert (out / "model.onnx").read_bytes() == b"earlier"


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_export_that_fails_the_gate_is_not_kept(earlier, tmp_path, monkeypatch):
    """In place of the built graph, which takes long, the gate's own process gets that of the package with a fault."""
    out, run, built = tmp_path / "out", export._run_step, []
    if earlier:
        out.mkdir()
        (out / export.REPORT).write_text("{}")
        (out / "model.onnx").write_bytes(b"earlier")

    def plant_fault(step, job, backend):
        if step == "gate":
            return run(step, job, backend)
        settings, bundle = json.loads(job.read_text("utf-8")), Bundle.load("cifar10")
        model = onnx.load_from_string(bundle.graph)
        faults.scale_weights(model)
        onnx.save(model, settings["artifact"])
        expected = compute_probabilities(bundle, open_arrays(settings["images"])["images"])
        np.savez(settings["reference"], probabilities=expected.astype(np.float32))
        built.append(Path(settings["artifact"]))
        return ""

    monkeypatch.setattr(export, "_run_step", plant_fault)
    status, printed, said = run_export("cifar10", "--out", out)
    assert (status, printed) == (2, "")
    *notices, last = said.strip().splitlines()
    assert last.startswith("shiftvit: the export to onnx failed the parity gate and is not kept: a probability differs")
    assert notices[0] == "shiftvit: building onnx in f32"
    assert len(notices) <= 2
    assert [path.exists() for path in built] == [False]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"] * earlier
    if earlier:
        assert (out / "model.onnx").read_bytes() == b"earlier"


@pytest.mark.slow
def test_export_replaces_an_earlier_one(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("exports") / "small-onnx-f32"
    out.mkdir(parents=True)
    (out / export.REPORT).write_text("{}")
    (out / "model.onnx").write_bytes(b"earlier")
    status, printed, said = run_export(bundle, "--format", "onnx")
    assert status == 0, said
    summary, place = printed.strip().splitlines()
    assert place == f"export: {out}"
    report = json.loads((out / export.REPORT).read_text("utf-8"))
    assert "same class for 100.00% of 12 images" in summary
    assert report["max_difference"] <= 1e-4
    assert report["bytes"] == (out / "model.onnx").stat().st_size
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", export.REPORT]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("content", ["file", "folder", "an export and more"])
def test_other_files_are_never_replaced(content, bundle, tmp_path):
    out = tmp_path / "out"
    if content == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    if content == "an export and more":
        (out / export.REPORT).write_text("{}")
        (out / "model.onnx").write_bytes(b"earlier")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ShiftViTError, match=r"exists and is not an export, so it is not replaced;.* another folder with --out"
    ):
        export.export(bundle, "onnx", out=out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("onxn",), "there is no format 'onxn'; did you mean 'onnx'?"),
        (("litert", "bf16"), "litert has no precision 'bf16'; "),
        (("torch", "int8"), "torch has no precision 'int8'; "),
        (("onnx", "bfloat16"), "onnx has no precision 'bfloat16'; did you mean 'bf16'?"),
        (("onnx", "fp16"), "fp16 is not offered as a precision; for ONNX weights in float16, run `shiftvit pack MODEL"),
        (("litert", "float16"), "float16 is not offered as a precision; "),
        (("onnx", "int8"), "no known data set has the model's classes (a, b"),
    ],
)
def test_unsupported_formats_and_precisions_fail(arguments, message, bundle, tmp_path):
    with pytest.raises(ShiftViTError) as caught:
        export.export(bundle, *arguments, out=tmp_path / "out")
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_unsuitable_data_fail(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(named._LOADERS, "cifar10", load_sample)
    with pytest.raises(ShiftViTError, match=r"the model has 3 classes \(a, b and c\) and cifar10 has"):
        export.export(bundle, "onnx", "int8", data="cifar10", out=tmp_path / "out")
    with pytest.raises(ShiftViTError, match="images=0 must be at least 1"):
        export.export("cifar10", "onnx", "int8", images=0, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_too_few_images_of_ones_own_fail_before_the_export_is_built(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_run_step", lambda *_: pytest.fail("it was built"))
    images = np.zeros((30, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(30) % 3, class_names=np.array(["a", "b", "c"]))
    with pytest.raises(ShiftViTError, match="labelled images cannot measure what int8 costs; at least 2000 are needed"):
        export.export(bundle, "onnx", "int8", data=str(tmp_path / "mine.npz"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_images_are_enough_if_there_are_no_more(precision, wrong, passes):
    report = gate.compare(
        make_probabilities(150, wrong), make_probabilities(150), np.zeros(150, np.int64), precision, 150
    )
    assert report["faults"] == ([] if passes else [f"top-1 falls by 1.33 points; {precision} may cost at most 0.5"])
    # At 95 % confidence: if no image changed, up to 3 in that many still may (the rule of three).
    assert report["top1_change_error"] == pytest.approx(100 * max(1.96 * wrong**0.5, 3) / 150, abs=1e-3)
    (fault,) = gate.compare(make_probabilities(149), make_probabilities(149), np.zeros(149, np.int64), precision, 150)[
        "faults"
    ]
    assert fault == f"149 labelled images cannot measure what {precision} costs; at least 150 are needed"


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in {"nncf", "openvino"} else object())
    with pytest.raises(ShiftViTError, match=r"needs openvino, nncf; pip install 'openvino>=2025.2' 'nncf>=2.17'"):
        find_format("openvino", "int8")
    assert find_format("onnx", "f32").artifact == "model.onnx"


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_only_int8_needs_the_quantizer(precision, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nncf" else object())
    assert find_format("openvino", precision).artifact == "model.xml"
    with pytest.raises(ShiftViTError, match=r"exporting to openvino needs nncf; pip install 'nncf>=2.17'"):
        find_format("openvino", "int8")
