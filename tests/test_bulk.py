"""The bulk engine: an output file for each block, and the rows of `predict` from two nodes."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bulk_runs import (
    PIXELS,
    assert_rows_equal,
    predict_in_one_process,
    read_rows,
)
from shiftvit import Embedder, ShiftViTError
from shiftvit.cli.main import app
from shiftvit.data.find.listing import list_images
from shiftvit.inference.bulk import run_bulk
from shiftvit.inference.cluster import import_ray
from shiftvit.inference.worker import (
    Task,
    name_part,
)

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SCALING = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text("utf-8")


def mark_cluster_test(test):
    """Marks a slow test that uses Ray, whose warnings about its own settings are not errors."""
    return pytest.mark.slow(pytest.mark.filterwarnings("default")(test))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "there is no engine 'spark'"),
        (["--address", "auto"], "--address needs --engine ray"),
        (["--out", "s3://bucket/labels.csv"], "'s3://bucket/labels.csv' is a URI, which needs --engine ray"),
        (["gs://bucket/photos"], "'gs://bucket/photos' is a URI, which needs --engine ray"),
        (["--engine", "ray"], "name it with --out DIR"),
        (["--engine", "ray", "--out", "o", "--grid", "g.png"], "--grid does not work with --engine ray"),
        (["--engine", "ray", "--out", "o", "--format", "csv"], "predict on Ray cannot write 'csv'"),
        (["--engine", "ray", "--out", "o", "--workers", "0"], "workers=0 must be at least 1"),
        (["--engine", "ray", "--out", "o", "--model", "nowhere"], "'nowhere' does not exist"),
        (["--engine", "ray", "--out", "o.csv"], "is named like a file"),
        (["--engine", "ray", "--out", "o", "--address", "127.0.0.1:1"], "no Ray cluster answers at '127.0.0.1:1'"),
        (["--engine", "ray", "--out", "o", "--address", "nonsense"], "no Ray cluster answers at 'nonsense'"),
    ],
)
def test_usage_errors_are_one_line(options, message, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["predict", str(photos / "a" / "000.png"), *options])
    assert isinstance(answer.exception, ShiftViTError)
    assert message in str(answer.exception)
    assert "\n" not in str(answer.exception)


def test_missing_ray_names_the_package_to_install(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShiftViTError, match=r"the engine 'ray' is not installed; pip install 'ray\[data\]"):
        run_bulk(Task("predict", str(tmp_path / "out")), [str(photos)], recursive=True)
    assert not (tmp_path / "out").exists()


def test_unusable_cluster_fails_in_one_line(photos, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    for fault, message in (
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.13.1"),
            "install the same versions on both",
        ),
        (ConnectionError("Could not find any running Ray instance."), "start a cluster with: ray start --head"),
    ):

        def init(*_, fault=fault, **__):
            raise fault

        monkeypatch.setattr(ray, "init", init)
        with pytest.raises(ShiftViTError, match=message) as caught:
            run_bulk(Task("predict", str(tmp_path / "out")), [str(photos)], recursive=True, address="auto")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_usage_statistics_follow_the_users_settings(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    name, settings = "RAY_USAGE_STATS_ENABLED", tmp_path / "config.json"
    monkeypatch.setenv("RAY_USAGE_STATS_CONFIG_PATH", str(settings))
    monkeypatch.setenv(name, "1")
    import_ray()
    assert os.environ[name] == "1"
    monkeypatch.delenv(name)
    import_ray()
    assert os.environ[name] == "0"
    monkeypatch.delenv(name)
    settings.write_text('{"usage_stats": true}')
    import_ray()
    assert name not in os.environ


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket of a local S3 service, to which the environment points; None if moto is not installed."""
    try:
        import boto3
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield None
        return
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # instead of a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "none"), ("REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # do not search the network for credentials
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield "bucket"
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket):  # noqa: ARG001  (nodes inherit the environment that points to it)
    """Two nodes of two cores each, on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    node = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TMPDIR", folder)  # Ray uses it too
        cluster = Cluster()
        try:
            cluster.add_node(**node, include_dashboard=False)
            cluster.add_node(**node)
            cluster.wait_for_nodes(60)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def start_command(cluster, *arguments, cwd, **options):
    command = [sys.executable, "-m", "shiftvit", *map(str, arguments), "--engine", "ray", "--address", cluster.address]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True, **options)


def list_actors():
    """Returns the process ids of the actors on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def act_when(condition, act, seconds=60):
    """Starts a thread that calls `act` once `condition` holds; returns a list for its result, and the thread."""
    results = []

    def watch():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                results.append(act())
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    return results, thread


@mark_cluster_test
def test_two_nodes_give_the_rows_of_predict(cluster, photos, tmp_path, monkeypatch):
    """Runs the command of the README."""
    expected = predict_in_one_process(tuple(list_images([str(photos)], recursive=True)))
    (documented,) = [line for line in README.splitlines() if "--engine ray" in line]
    command = shlex.split(documented.replace("--address auto", f"--address {cluster.address}"), comments=True)
    command[command.index("labels")] = str(tmp_path / "out")
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=photos.parent, stderr=subprocess.PIPE, text=True)
    _, notices = process.communicate(timeout=120)
    assert process.returncode == 0, notices
    short = [{**row, "path": str(Path(row["path"]).relative_to(photos.parent))} for row in expected]
    for row in short:
        row.update(error=row["error"].replace(str(photos), "photos")) if "error" in row else None
    assert_rows_equal(read_rows(tmp_path / "out"), short)
    assert "200 images in" in notices
    assert "2 could not be read" in notices
    assert "(4 actors)" in notices
    monkeypatch.chdir(photos.parent)
    command = ["predict", "photos", "-r", "--engine", "ray", "--address", "127.0.0.1:1", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, command).exit_code == 0  # nothing is left to do, so Ray is not started
    assert CliRunner().invoke(app, [*command, "--strict"]).exit_code == 3


@mark_cluster_test
def test_more_threads_than_a_node_has_do_not_wait(cluster, photos, tmp_path):
    """The cluster has four cores, but each node two."""
    task = Task("predict", str(tmp_path / "out"), threads=3)
    with pytest.raises(ShiftViTError, match="threads=3 needs a node with as many cores, but the largest has 2"):
        run_bulk(task, [str(photos / "a")], address=cluster.address)
    assert not (tmp_path / "out").exists()


@mark_cluster_test
def test_cluster_reads_parquet_and_uris(cluster, photos, shard, tmp_path):
    task = Task("predict", (tmp_path / "out").as_uri(), kind="parquet", top_k=3)
    done = run_bulk(task, [photos.as_uri() + "/a", str(shard)], address=cluster.address, workers=2)
    assert (done.images, done.failures, done.before, done.actors) == (182, 4, 0, 2)
    rows = read_rows(tmp_path / "out")
    assert_rows_equal(rows[:120], predict_in_one_process(tuple(list_images([str(photos / "a")]))), "file://")
    assert [row["path"] for row in rows[120:]] == [f"{shard}#{number}" for number in range(62)]
    assert all(len(row["top"]) == 3 for row in rows if row["error"] is None)
    again = run_bulk(task, [photos.as_uri() + "/a", str(shard)], address="127.0.0.1:1", recount=True)
    assert (again.images, again.failures, again.before) == (0, 4, 182)


@mark_cluster_test
def test_cluster_reads_and_writes_a_bucket(cluster, bucket, photos, tmp_path):
    """Runs the command of docs/scaling.md."""
    if bucket is None:
        pytest.skip("moto is not installed: pip install 'moto[s3]' flask-cors")
    from pyarrow import fs

    fs.copy_files(str(photos), f"s3://{bucket}/photos")
    (documented,) = [line for line in SCALING.splitlines() if line.strip().startswith("shiftvit predict s3://")]
    command = shlex.split(documented.replace("--address auto", f"--address {cluster.address}"), comments=True)
    process = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 0, process.stderr
    (tmp_path / "out").mkdir()
    fs.copy_files(f"s3://{bucket}/labels", str(tmp_path / "out"))
    names = list_images([str(photos)], recursive=True)
    expected = [
        {**row, "path": row["path"].replace(str(photos), f"{bucket}/photos")}
        for row in predict_in_one_process(tuple(names))
    ]
    for row in expected:
        row.update(error=row["error"].replace(str(photos), f"{bucket}/photos")) if "error" in row else None
    assert_rows_equal(read_rows(tmp_path / "out"), expected, "s3://")
    again = run_bulk(
        Task("predict", f"s3://{bucket}/labels"), [f"s3://{bucket}/photos"], recursive=True, address="127.0.0.1:1"
    )
    assert (again.images, again.before) == (0, 200)


@mark_cluster_test
def test_cluster_computes_features(cluster, photos, tmp_path):
    task = Task("embed", str(tmp_path / "out"))
    done = run_bulk(task, [str(photos)], recursive=True, address=cluster.address, workers=2)
    assert done.features == 256
    names = list_images([str(photos)], recursive=True)
    rows = read_rows(tmp_path / "out")
    assert [row["path"] for row in rows] == names
    results = list(Embedder.from_pretrained("cifar10").stream(names))
    for row, result in zip(rows, results, strict=True):
        assert row["error"] == getattr(result, "error", None)
        if row["error"] is None:
            np.testing.assert_allclose(row["features"], result.features, atol=1e-4)


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory):
    """1,500 pictures, so that a run of small blocks lasts a few seconds."""
    root = tmp_path_factory.mktemp("many")
    for number in range(1500):
        Image.fromarray(PIXELS[number % len(PIXELS)]).save(root / f"{number:04}.png", compress_level=1)
    return root


@mark_cluster_test
def test_killed_actor_loses_and_repeats_no_rows(cluster, many_photos, tmp_path):
    out = tmp_path / "out"

    def kill():
        victim = list_actors()[0]
        os.kill(victim, signal.SIGKILL)
        return len(list(out.glob("part-*")))

    killed, thread = act_when(lambda: len(list(out.glob("part-*"))) >= 3, kill)
    done = run_bulk(Task("predict", str(out)), [str(many_photos)], address=cluster.address, workers=2, block=10)
    thread.join()
    assert 3 <= killed[0] < 150
    assert done.images == 1500
    assert sorted(path.name for path in out.iterdir()) == [name_part(n, "jsonl") for n in range(150)] + ["run.json"]
    assert_rows_equal(read_rows(out), predict_in_one_process(tuple(list_images([str(many_photos)]))))


@mark_cluster_test
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_run_continues(cluster, many_photos, tmp_path, number):
    out = tmp_path / "out"
    process = start_command(cluster, "predict", many_photos, "--workers", "2", "--out", out, cwd=tmp_path)
    end = time.monotonic() + 90
    while not list(out.glob("part-*")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, notices = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number, notices
        assert "run the same command again to continue" in notices
    while list_actors() and time.monotonic() < end:  # they finish writing and end after their driver
        time.sleep(0.1)
    leftover = out / ".part-000000.jsonl.0.tmp"  # as left by a kill before the rename
    leftover.mkdir()
    (leftover / ".lock").write_bytes(b"")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 0 < len(before) < 63
    with pytest.raises(ShiftViTError, match="holds a run with top_k = 5, not 2"):
        run_bulk(Task("predict", str(out), top_k=2), [str(many_photos)], address=cluster.address)
    done = run_bulk(Task("predict", str(out)), [str(many_photos)], address=cluster.address, workers=2)
    assert done.before > 0
    assert done.before + done.images == 1500
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}.items()
    assert_rows_equal(read_rows(out), predict_in_one_process(tuple(list_images([str(many_photos)]))))
    assert not list(out.glob(".*"))
    assert not list(Path(os.environ["TMPDIR"]).glob(".shiftvit*"))  # no model left by a killed worker


@mark_cluster_test
def test_node_with_another_version_ends_the_run(cluster, photos, tmp_path):
    """The error is one line, and the run continues once the node has the right version."""
    import ray

    other = tmp_path / "other" / "shiftvit"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '0.0.1'")
    task, names = Task("predict", str(tmp_path / "out")), [str(photos / "b c")]
    import_ray()
    with ray.init(
        cluster.address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(other.parent)}},
    ):
        with pytest.raises(
            ShiftViTError, match="install the same shiftvit on all nodes, then start the command again"
        ) as fault:
            run_bulk(task, names, workers=1)
        assert "No module named 'shiftvit" in str(fault.value)
        assert "\n" not in str(fault.value)
    assert run_bulk(task, names, address=cluster.address, workers=1).images == 80
