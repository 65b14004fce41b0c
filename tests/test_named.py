"""Loading data sets by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shiftvit.cli.settings import choose_recipe
from shiftvit.data import named
from shiftvit.errors import ShiftViTError
from trees import plant


def test_load_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as data:
        arrays = tuple(data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    monkeypatch.setattr(named, "load_cifar10", lambda: arrays)
    data = named.load("cifar10")
    assert data.name == "cifar10"
    assert data.train.images is arrays[0]
    assert data.test.images is arrays[2]
    assert data.train.labels.dtype == data.test.labels.dtype == np.int64
    np.testing.assert_array_equal(data.test.labels, arrays[3])
    assert " ".join(data.class_names) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ShiftViTError, match="'cifar_10'; did you mean 'cifar10'"):
        named.load("cifar_10")


def test_notice_if_a_folder_has_the_name_of_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(plant(tmp_path, "cifar10/cat/1.png", "cifar10/dog/1.png"))
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as data:
        arrays = tuple(data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    monkeypatch.setattr(named, "load_cifar10", lambda: arrays)
    assert named.look_up("cifar10").path is None
    notice = "shiftvit: using the data set cifar10; for the folder or file of that name write --data ./cifar10\n"
    assert capsys.readouterr().err == notice
    for name in ("./cifar10", "cifar10/", str(tmp_path / "cifar10")):
        assert named.is_path(name)
        assert choose_recipe(name) == "photos"
        assert named.look_up(name).class_names == ("cat", "dog")
    assert capsys.readouterr().err == ""
    assert choose_recipe("cifar10") == "quick"


def test_import_loads_nothing_heavy() -> None:
    modules = ["keras", "torch", "jax", "tensorflow", "PIL", "sklearn", "rich", "urllib.request"]
    code = (
        "import sys; import shiftvit.data.named, shiftvit.data.find.splits, shiftvit.preprocess; "
        f"import shiftvit.augment.augment; print([name for name in {modules} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
