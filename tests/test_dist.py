"""The published archives: their content, and that an installed wheel predicts outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import shiftvit

ROOT = Path(__file__).parents[1]
PACKAGE = Path(shiftvit.__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive, as `make dist` builds them."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def list_package_files():
    """Returns the files of the package's folder, without bytecode."""
    return {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()} - {
        path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("__pycache__/*")
    }


def test_wheel_holds_exactly_the_package(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
        (licence,) = [name for name in names if name.endswith("/licenses/LICENSE")]
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        (entries,) = [name for name in names if name.endswith("/entry_points.txt")]
        assert "shiftvit = shiftvit.__main__:main" in wheel.read(entries).decode()
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == list_package_files()
    for name in ("py.typed", "recipes/quick.toml", "pretrained/cifar10/model.onnx", "pretrained/cifar10/bundle.json"):
        assert f"shiftvit/{name}" in inside
    assert {f"shiftvit/serve/page/{name}" for name in ("index.html", "style.css", "main.js", "api.js")} <= inside
    assert len([name for name in inside if "/samples/" in name]) == 12
    assert archives[0].stat().st_size < 9_000_000


def test_source_archive_holds_the_sources_of_the_wheel(archives):
    with tarfile.open(archives[1]) as source:
        names = {name.split("/", 1)[1] for name in source.getnames()}
    outside = {name for name in names if not name.startswith("src/")}
    own = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"}
    assert outside == own | {"PKG-INFO", ".gitignore"}
    assert {name.removeprefix("src/") for name in names - outside} == list_package_files()


def test_installed_wheel_predicts_outside_the_checkout(archives, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    bin_folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / "python"
    (site,) = (tmp_path / "venv").rglob("site-packages")
    # Dependencies come from the environment of the tests. Its .pth files, such as that of the checkout, are not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, str(archives[0])], check=True, capture_output=True)
    clean_environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KERAS"))}
    show_location = [str(python), "-c", "import shiftvit; print(shiftvit.__file__)"]
    location = subprocess.run(
        show_location, cwd=tmp_path, env=clean_environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(location).is_relative_to(site)
    command = [str(bin_folder / "shiftvit"), "predict", "--format", "csv", "--out", "labels.csv"]
    subprocess.run(command, cwd=tmp_path, env=clean_environment, check=True, capture_output=True)
    rows = (tmp_path / "labels.csv").read_text("utf-8").splitlines()
    assert len(rows) == 13
    assert sum(row.split(",")[1] in row.split(",")[0] for row in rows[1:]) >= 10  # the folders are the classes
