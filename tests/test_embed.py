"""`Embedder` and `shiftvit embed`: they return the input of the head, the same from the graph and from Keras."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from typer.testing import CliRunner

from parquet_tables import write_cifar
from sample import load_sample
from shiftvit import Bundle, Embedder, Predictor, ShiftViTError
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.bundle.stored.manifest import GRAPH
from shiftvit.cli.main import app
from shiftvit.inference.embed import Embedding, write_table
from shiftvit.inference.predict import Failure


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_pretrained("cifar10")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for index, image in enumerate(load_sample().test.images[:9]):
        paths.append(str(tmp_path / f"{index:03}.png"))
        Image.fromarray(image).save(paths[-1])
    return paths


def run_command(*arguments: str) -> str:
    answer = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.output


def test_head_turns_features_into_the_predictors_probabilities(embedder: Embedder, files: list[str]) -> None:
    bundle, found = Bundle.load("cifar10"), embedder(files)
    assert embedder.runtime == "onnxruntime"
    assert found.shape == (9, embedder.size)
    assert found.dtype == np.float32
    weights = {name: bundle.weights[name].astype(np.float32) for name in ("head/kernel", "head/bias")}
    logits = found @ weights["head/kernel"] + weights["head/bias"]
    expected = np.stack([one.probabilities for one in Predictor.from_pretrained("cifar10")(files)])
    np.testing.assert_allclose(softmax(logits / np.float32(bundle.temperature), axis=1), expected, atol=1e-5)


@pytest.mark.slow
def test_keras_matches_the_graph(embedder: Embedder, files: list[str]) -> None:
    by_keras = Embedder.from_pretrained("cifar10", runtime="keras")
    np.testing.assert_allclose(by_keras(files), embedder(files), atol=2e-4, rtol=1e-4)
    model = Bundle.load("cifar10").build("float32")
    pooled = keras.Model(model.input, model.get_layer("head").input)
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    expected = keras.ops.convert_to_numpy(pooled(by_keras.metadata.preprocess(pixels)))
    np.testing.assert_allclose(by_keras(files), expected, atol=1e-5)


def test_batch_size_and_kind_of_input_make_no_difference(embedder: Embedder, files: list[str]) -> None:
    arrays = [np.asarray(Image.open(path)) for path in files]
    expected = embedder(files)
    np.testing.assert_allclose(embedder(files, batch_size=2), expected, atol=1e-4)
    np.testing.assert_allclose(embedder(np.stack(arrays)), expected, atol=1e-4)
    np.testing.assert_allclose(embedder(arrays[0]), expected[:1], atol=1e-4)
    assert embedder([]).shape == (0, embedder.size)


def test_embedder_can_be_pickled(embedder: Embedder, files: list[str]) -> None:
    again = pickle.loads(pickle.dumps(embedder))
    assert again.runtime == embedder.runtime
    np.testing.assert_array_equal(again(files), embedder(files))


@pytest.mark.slow
def test_pickled_embedder_keeps_its_runtime() -> None:
    by_keras = Embedder.from_pretrained("cifar10", runtime="keras")
    assert pickle.loads(pickle.dumps(by_keras)).runtime == "keras"


def test_broken_file_does_not_affect_the_others(embedder: Embedder, files: list[str]) -> None:
    Path(files[3]).write_bytes(b"no picture")
    results = list(embedder.stream(files))
    assert [type(result) is Failure for result in results] == [place == 3 for place in range(9)]
    assert [result.path for result in results] == files
    with pytest.raises(ShiftViTError, match="not an image"):
        embedder(files)


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_command_writes_paths_and_features(ending: str, embedder: Embedder, files: list[str], tmp_path: Path) -> None:
    Path(files[3]).write_bytes(b"no picture")
    out = tmp_path / f"features{ending}"
    output = run_command("embed", str(tmp_path), "--out", str(out))
    assert "skipped: " in output
    assert "of 8 images" in output
    kept = [path for path in files if path != files[3]]
    if ending == ".npz":
        with np.load(out, allow_pickle=False) as arrays:
            paths, features = arrays["paths"].tolist(), arrays["features"]
    else:
        from pyarrow import parquet

        columns = parquet.read_table(out).to_pydict()
        paths, features = columns["path"], np.array(columns["features"], np.float32)
    assert paths == kept
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, embedder(kept), atol=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_parquet_with_several_row_groups(
    embedder: Embedder, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftvit.inference.embed._ROWS", 4)
    from pyarrow import parquet

    out = tmp_path / "features.parquet"
    run_command("embed", *files, "--out", str(out))
    assert parquet.ParquetFile(out).num_row_groups == 3
    features = np.array(parquet.read_table(out)["features"].to_pylist(), np.float32)
    np.testing.assert_allclose(features, embedder(files), atol=1e-4)


def test_parquet_holds_names_that_are_not_utf8(tmp_path: Path) -> None:
    from pyarrow import parquet

    write_table(tmp_path / "f.parquet", iter([Embedding("\udcff.png", np.zeros(2, np.float32))]), 2)
    assert parquet.read_table(tmp_path / "f.parquet")["path"].to_pylist() == ["\\udcff.png"]


@pytest.mark.parametrize(
    ("out", "fault"),
    [
        ("features.csv", "has no known suffix; use one of: .npz, .parquet"),
        ("no/features.npz", "cannot write .*features.npz': No such file or directory"),
        (".", "is a folder; name a file in it"),
    ],
)
def test_invalid_output_paths_fail(out: str, fault: str, files: list[str]) -> None:
    with pytest.raises(ShiftViTError, match=fault):
        run_command("embed", *files, "--out", str(Path(files[0]).parent / out))


def test_output_does_not_overwrite_a_file_that_is_read(files: list[str], tmp_path: Path) -> None:
    table = write_cifar(tmp_path / "pets.parquet", slice(2))
    before = table.read_bytes()
    for path in (f"{table}#1", str(table)):
        with pytest.raises(ShiftViTError, match=r"pets\.parquet' is also read here, and would be overwritten"):
            run_command("embed", path, files[0], "--out", str(table))
    assert table.read_bytes() == before


def test_nothing_is_written_without_a_readable_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    out = tmp_path / "features.npz"
    with pytest.raises(ShiftViTError, match="none of 1 image can be read"):
        run_command("embed", str(tmp_path / "a.png"), "--out", str(out))
    assert not out.exists()


def test_damaged_and_unsupported_graphs_fail_with_one_line(tmp_path: Path) -> None:
    content = (PRETRAINED / "cifar10" / GRAPH).read_bytes()
    for name, text in (("graph.onnx", content[:-1]), ("graph.tflite", content)):
        path = tmp_path / name
        path.write_bytes(text)
        with pytest.raises(ShiftViTError, match="cannot compute features") as caught:
            Embedder.from_pretrained(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ShiftViTError, match="in 'openvino'"):
        Embedder.from_pretrained("cifar10", runtime="openvino")


def test_embedding_from_a_graph_loads_no_framework() -> None:
    program = (
        "import sys; from shiftvit import Embedder; Embedder.from_pretrained('cifar10')([]);"
        "print([name for name in ('keras', 'torch', 'onnx', 'sklearn') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
