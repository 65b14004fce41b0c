"""Training in several processes: the same images, weights and files as in one process; all end if one ends."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from logs import read_log
from shiftvit import Recipe, ShiftViTError, errors
from shiftvit.augment.augment import Augment
from shiftvit.data.batches.host import EpochBatches
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import Elsewhere
from shiftvit.preprocess import Preprocess
from shiftvit.training import groups
from shiftvit.training.place import find_place
from shiftvit.training.processes import Processes, Several
from shiftvit.training.setup import check_alone, resolve

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import scaling_plan  # noqa: E402

WORKER = Path(__file__).with_name("process_worker.py")
SETTINGS = {
    "data.validation": 0.2,
    "data.test": 0.2,
    "preprocess.resize": 18,
    "preprocess.crop": 16,
    "model.patch_size": 4,
    "model.embed_dim": 24,
    "model.depths": "[1, 1]",
    "model.dropout": 0.0,
    "model.drop_path": 0.0,
    "augment.pad": 2,
    "augment.mixup": 0.4,
    "augment.cutmix": 1.0,
    "train.epochs": 2,
    "train.batch_size": 12,
    "train.precision": "float32",
    "train.ema": 0.9,
    "train.optimizer.name": "muon",
    "train.optimizer.learning_rate": 0.003,
    "train.optimizer.clipnorm": 1.0,
    "train.select": "last",
}
# The entries of the log and the metrics that differ from run to run.
VARYING_KEYS = {
    "seconds",
    "images_per_second",
    "input_images_per_second",
    "reduced_bytes_per_step",
    "waited_seconds_per_step",
}


@dataclass
class Outcome:
    """What ended processes leave: their exit statuses, their outputs, and what each recorded."""

    status: list[int]
    outputs: list[str]
    run: Path
    seconds_after_fault: float | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)

    def load_log(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in VARYING_KEYS} for row in read_log(self.run)]

    def load_metrics(self) -> dict[str, Any]:
        found = json.loads((self.run / "metrics.json").read_text())
        found["train"] = {key: value for key, value in found["train"].items() if key not in VARYING_KEYS}
        return found

    def list_images(self) -> dict[str, list[str]]:
        """Returns the hashes of the images and labels of each batch of each epoch, those of process 0 first."""
        keys = self.records[0]["images"]
        return {key: [image for record in self.records for image in record["images"][key]] for key in keys}


def find_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class ForkServer:
    """Forks processes that have already imported torch or jax. It starts with the first training."""

    process: subprocess.Popen[str] | None = None

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def run(self, job: dict[str, Any]) -> list[int]:
        if self.process is None:
            command = [sys.executable, str(WORKER), "serve"]
            environment = {**os.environ, "KERAS_BACKEND": self.backend, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status: list[int] = json.loads(self.process.stdout.readline())
        return status

    def stop(self) -> None:
        if self.process is not None:
            self.process.communicate()
            self.process = None


fork_servers = {backend: ForkServer(backend) for backend in ("torch", "jax")}


@pytest.fixture(scope="module", autouse=True)
def _stop_fork_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # so that jax compiles each program only once
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield
    for server in fork_servers.values():
        server.stop()


def run_new_processes(
    count: int,
    settings: Path,
    files: Sequence[Path],
    shared: dict[str, str],
    timeout: float,
    prefix: Callable[[int], list[str]],
    during: Callable[[Path], None],
) -> list[int]:
    """Starts new processes, ends them after a time limit, and returns their statuses."""
    began, started = time.monotonic(), []
    try:
        for rank in range(count):
            with files[rank].open("w") as out:
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [*prefix(rank), sys.executable, str(WORKER), str(settings)]
                started.append(subprocess.Popen(command, env={**os.environ, **shared, **own}, stdout=out, stderr=out))
        during(settings.parent)
        for process in started:
            process.wait(max(1.0, began + timeout - time.monotonic()))
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [process.returncode for process in started]


def train_in(
    count: int,
    run: Path,
    arguments: Sequence[str],
    *,
    fault: dict[str, Any] | None = None,
    backend: str = "torch",
    timeout: float = 120,
    prefix: Callable[[int], list[str]] | None = None,
    during: Callable[[Path], None] = lambda _: None,
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Trains in `count` processes of this machine and ends them after a time limit.

    `fault` names the rank, the epoch and step, and the kind of a fault that the process causes itself: "signal" (with
    the number as "signal"), "nan", "memory", or "wait" for the test.
    """
    place = run.parent / f"{run.name}-record-{time.monotonic_ns()}"
    place.mkdir(parents=True)
    settings = {"run": str(run), "record": str(place), "arguments": [*arguments], "fault": fault}
    (place / "settings.json").write_text(json.dumps(settings))
    shared = {
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
        **(environment or {}),
    }
    files = [place / f"output{rank}" for rank in range(count)]
    if prefix is None:
        job = {
            "settings": str(place / "settings.json"),
            "outputs": [*map(str, files)],
            "environment": shared,
            "timeout": timeout,
        }
        status = fork_servers[backend].run(job)
    else:
        status = run_new_processes(count, place / "settings.json", files, shared, timeout, prefix, during)
    # Leaves out the greetings of libraries.
    outputs = [
        re.sub(r"(?m)^(WARNING: All log|[IWE]\d{4} |\[W\d{4} |\[Gloo\]).*\n", "", path.read_text()) for path in files
    ]
    found = Outcome(status, outputs, run)
    if (place / "fault").is_file():
        found.seconds_after_fault = time.time() - (place / "fault").stat().st_mtime
    for rank in range(count):
        if (place / f"record{rank}.json").is_file():
            found.records.append(json.loads((place / f"record{rank}.json").read_text()))
        if (place / f"weights{rank}.npz").is_file():
            found.weights.append(dict(np.load(place / f"weights{rank}.npz")))
    return found


# How far the weights may be from those of one process.
TOLERANCE = {"torch": 1e-4, "jax": 1e-5}
on_both = pytest.mark.parametrize("backend", ["torch", "jax"])


def compute_max_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    assert first.keys() == second.keys()
    return max(float(np.abs(first[key] - second[key]).max()) for key in first)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "pictures"
    generator = np.random.default_rng(0)
    for place in range(3):
        (folder / f"class{place}").mkdir(parents=True)
        for number in range(24):
            pixels = generator.integers(0, 150, (18, 18, 3), np.uint8)
            pixels[..., place] += 100
            Image.fromarray(pixels).save(folder / f"class{place}" / f"{number}.png")
    return folder


def make_arguments(pictures: Path, run: Path, **changes: Any) -> list[str]:
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["--recipe", "photos", "--data", str(pictures), "--out", str(run), *sets]


Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def train_once(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Returns a function that trains in `count` processes, each combination of count, norm and backend once."""
    known: dict[Any, Outcome] = {}

    def run(count: int, norm: str = "layer", backend: str = "torch", **named: Any) -> Outcome:
        if (count, norm, backend) not in known:
            out = tmp_path_factory.mktemp("run") / "run"
            found = train_in(count, out, make_arguments(pictures, out, model__norm=norm), backend=backend, **named)
            assert found.status == [0] * count, found.outputs
            known[count, norm, backend] = found
        return known[count, norm, backend]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("count", "norm"), [(2, "layer"), (3, "group")])
def test_several_processes_match_one(train_once: Train, count: int, norm: str) -> None:
    one, several = train_once(1, norm), train_once(count, norm)
    assert len(several.weights) == count
    for weights in several.weights[1:]:
        assert compute_max_difference(several.weights[0], weights) == 0
    assert compute_max_difference(one.weights[0], several.weights[0]) < 1e-4
    assert compute_max_difference(one.weights[0], dict.fromkeys(one.weights[0], 0)) > 0.1
    # The augmented images of every batch of both epochs are the same, in the same order.
    assert len(one.list_images()) == 2 * 3
    assert several.list_images() == one.list_images()
    assert all(len(record["images"][key]) == 12 // count for record in several.records for key in record["images"])


@pytest.mark.slow
def test_only_process_0_writes_and_prints(train_once: Train) -> None:
    one, two = train_once(1), train_once(2)
    assert {path.relative_to(one.run) for path in one.run.rglob("*")} == {
        path.relative_to(two.run) for path in two.run.rglob("*")
    }
    assert two.records[0]["written"]
    assert two.records[1]["written"] == []
    for row, other in zip(one.load_log(), two.load_log(), strict=True):
        assert other == pytest.approx(row, abs=2e-5)
    for name, found in one.load_metrics().items():
        assert two.load_metrics()[name] == pytest.approx(found, abs=2e-5)
    assert "run folder:" in two.outputs[0]
    assert two.outputs[1] == ""
    costs = read_log(two.run)[0]
    assert costs["reduced_bytes_per_step"] == sum(
        weight.nbytes for name, weight in two.weights[0].items() if "seed" not in name
    )
    assert costs["waited_seconds_per_step"] > 0
    assert "waited_seconds_per_step" not in read_log(one.run)[0]


@pytest.fixture(scope="module")
def train_and_stop(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Returns a function that trains in two processes, of which the second gets SIGTERM in the second epoch."""

    @functools.cache
    def stop(backend: str) -> Outcome:
        run = tmp_path_factory.mktemp("stopped") / "run"
        fault = {"rank": 1, "step": [1, 1], "kind": "signal", "signal": int(signal.SIGTERM)}
        return train_in(2, run, make_arguments(pictures, run), fault=fault, backend=backend)

    return stop


@pytest.mark.slow
@on_both
def test_signal_to_one_process_stops_all(train_and_stop: Callable[[str], Outcome], backend: str) -> None:
    stopped = train_and_stop(backend)
    assert stopped.status == [143, 143], stopped.outputs
    assert stopped.seconds_after_fault is not None
    assert stopped.seconds_after_fault < 30
    assert "the state is saved" in stopped.outputs[0]
    assert stopped.outputs[1] == ""
    assert len(read_log(stopped.run)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "count"), [("torch", 1), ("torch", 2), ("torch", 3), ("jax", 1), ("jax", 2)])
def test_any_number_of_processes_resumes(
    train_and_stop: Callable[[str], Outcome], train_once: Train, tmp_path: Path, backend: str, count: int
) -> None:
    shutil.copytree(train_and_stop(backend).run, tmp_path / "run")
    found = train_in(count, tmp_path / "run", ["--resume", str(tmp_path / "run")], backend=backend)
    assert found.status == [0] * count, found.outputs
    for weights in found.weights:
        assert compute_max_difference(train_once(1, backend=backend).weights[0], weights) < TOLERANCE[backend]
        assert compute_max_difference(found.weights[0], weights) == 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@on_both
def test_all_end_when_one_is_killed(
    pictures: Path, train_once: Train, tmp_path: Path, backend: str, killed: int
) -> None:
    run, other = tmp_path / "run", 1 - killed
    fault = {"rank": killed, "step": [1, 1], "kind": "signal", "signal": int(signal.SIGKILL)}
    found = train_in(2, run, make_arguments(pictures, run), fault=fault, backend=backend, timeout=90)
    assert found.status[killed] == -signal.SIGKILL
    assert found.status[other] in (1, 2), found.outputs
    assert found.seconds_after_fault is not None
    assert found.seconds_after_fault < 30
    assert found.outputs[other].count("--resume RUN") == 1
    assert "Traceback" not in found.outputs[other]
    if killed:
        resumed = train_in(1, run, ["--resume", str(run)], backend=backend)
        assert resumed.status == [0], resumed.outputs
        assert (
            compute_max_difference(train_once(1, backend=backend).weights[0], resumed.weights[0]) < TOLERANCE[backend]
        )


@pytest.mark.slow
@on_both
def test_non_finite_loss_in_one_process_ends_all(pictures: Path, tmp_path: Path, backend: str) -> None:
    run = tmp_path / "run"
    fault = {"rank": 1, "step": [0, 2], "kind": "nan"}
    found = train_in(2, run, make_arguments(pictures, run), fault=fault, backend=backend)
    assert found.status == [2, 2], found.outputs
    assert found.outputs[0].count("the loss is nan") == 1
    assert found.outputs[1] == ""
    assert len(json.loads((run / "not_finite.json").read_text())["images"]) == 12


@pytest.mark.slow
def test_out_of_memory_in_one_process_halves_the_parts_of_all(
    pictures: Path, train_once: Train, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fault = {"rank": 1, "step": [1, 1], "kind": "memory"}
    found = train_in(2, run, make_arguments(pictures, run, train__auto_batch="true"), fault=fault)
    assert found.status == [0, 0], found.outputs
    assert Recipe.load(run / "recipe.toml").train.accumulate == 2
    assert compute_max_difference(found.weights[0], found.weights[1]) == 0
    assert compute_max_difference(train_once(1).weights[0], found.weights[0]) < 1e-4


@pytest.mark.slow
def test_out_of_memory_in_one_process_ends_all_on_jax(pictures: Path, train_once: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = {"rank": 1, "step": [1, 1], "kind": "memory"}
    found = train_in(2, run, make_arguments(pictures, run, train__auto_batch="true"), fault=fault, backend="jax")
    assert set(found.status) <= {1, 2}, found.outputs
    assert found.seconds_after_fault is not None
    assert found.seconds_after_fault < 30
    assert found.outputs[1].startswith(
        "shiftvit: out of memory in process 1; continue in smaller parts with --resume RUN"
    )
    assert found.outputs[1].count("\n") == 1
    assert found.outputs[0].count("--resume RUN") == 1
    parts = ["--set", "train.accumulate=2"]
    resumed = train_in(1, run, ["--resume", str(run), *parts], backend="jax")
    assert resumed.status == [0], resumed.outputs
    assert compute_max_difference(train_once(1, backend="jax").weights[0], resumed.weights[0]) < TOLERANCE["jax"]


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces that are joined by a virtual cable, in place of two machines."""
    names = [f"shiftvit{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"sv{os.getpid()}{letter}" for letter in "ab"]
    made = shutil.which("ip") and subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode == 0
    if not made:
        pytest.skip("network namespaces cannot be made here (Debian: iproute2, as root)")
    try:
        do = [
            f"netns add {names[1]}",
            f"link add {cable[0]} netns {names[0]} type veth peer name {cable[1]} netns {names[1]}",
        ]
        for place, name in enumerate(names):
            do += [
                f"-n {name} address add 10.213.7.{place + 1}/24 dev {cable[place]}",
                f"-n {name} link set {cable[place]} up",
                f"-n {name} link set lo up",
            ]
        for words in do:
            if subprocess.run(["ip", *words.split()], capture_output=True).returncode:
                pytest.skip(f"network namespaces cannot be connected here: ip {words}")
        yield names[1], cable[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
@on_both
def test_pulled_cable_ends_both_machines(
    machines: tuple[str, str], pictures: Path, train_once: Train, tmp_path: Path, backend: str
) -> None:
    run, (second, cable) = tmp_path / "run", machines
    names = [second[:-1] + "a", second]
    ended = []

    def enter(rank: int) -> list[str]:
        return ["ip", "netns", "exec", names[rank]]

    def set_link(state: str) -> None:
        subprocess.run(["ip", "-n", second, "link", "set", cable, state], check=True)

    def unplug(place: Path) -> None:
        limit = time.monotonic() + 100
        while not (place / "waiting").exists():
            assert time.monotonic() < limit
            time.sleep(0.05)
        set_link("down")
        (place / "waiting").unlink()
        ended.append(time.monotonic())

    there: dict[str, Any] = {"prefix": enter, "environment": {"MASTER_ADDR": "10.213.7.1"}, "backend": backend}
    fault = {"rank": 1, "step": [1, 1], "kind": "wait"}
    found = train_in(2, run, make_arguments(pictures, run), fault=fault, during=unplug, timeout=150, **there)
    assert time.monotonic() - ended[0] < 30
    assert found.status == [1, 1], found.outputs
    assert [output.count("--resume RUN") for output in found.outputs] == [1, 1], found.outputs
    set_link("up")
    resumed = train_in(2, run, ["--resume", str(run)], **there)
    assert resumed.status == [0, 0], resumed.outputs
    assert compute_max_difference(resumed.weights[0], resumed.weights[1]) == 0
    assert compute_max_difference(train_once(1, backend=backend).weights[0], resumed.weights[0]) < TOLERANCE[backend]


@pytest.mark.slow
def test_two_jax_processes_match_one(train_once: Train) -> None:
    one = train_once(1, backend="jax")
    with socket.create_server(("127.0.0.1", 0)) as torchrun:  # torchrun listens on the port that it announces
        there = {"MASTER_PORT": str(torchrun.getsockname()[1]), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        two = train_once(2, backend="jax", environment=there)
    assert compute_max_difference(two.weights[0], two.weights[1]) == 0
    assert compute_max_difference(one.weights[0], two.weights[0]) < 1e-5
    assert two.list_images() == one.list_images()
    assert two.records[1]["written"] == []
    assert two.outputs[1] == ""
    for row, other in zip(one.load_log(), two.load_log(), strict=True):
        assert other == pytest.approx(row, abs=2e-5)
    for name, found in one.load_metrics().items():
        assert two.load_metrics()[name] == pytest.approx(found, abs=2e-5)


def run_python(code: str, **environment: str) -> tuple[int, str]:
    """Runs Python code in a new process; returns its exit status and its output."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout + done.stderr


ABORT_PROGRAM = """
import os, sys, threading, time
from shiftvit.training.jax_group import Abort
abort = Abort("a process is lost")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="jax does not connect processors there")
def test_abort_by_jax_prints_one_line() -> None:
    elsewhere = "threading.Thread(target=os.abort).start(); time.sleep(20)"
    assert run_python(ABORT_PROGRAM + elsewhere) == (1, "shiftvit: a process is lost\n")
    # No second line after an error of this process.
    reported = "abort.expect_report(); threading.Thread(target=os.abort).start(); time.sleep(0.2); os.write(1, b'own')"
    assert run_python(f"{ABORT_PROGRAM}{reported}; os._exit(2)") == (2, "own")
    assert run_python(f"{ABORT_PROGRAM}abort.restore(); os.abort()")[0] == -signal.SIGABRT


@pytest.mark.slow
def test_jax_process_ends_if_the_others_do_not_join() -> None:
    code = """
from shiftvit.training import groups, jax_group
jax_group.JOIN = 1
with groups.join_processes():
    raise AssertionError
"""
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    status, output = run_python(code, KERAS_BACKEND="jax", **place)
    assert status == 1, output
    assert output.count("shiftvit: ") == 1
    assert "the processes did not find each other within 120 s; are all started, and is the port open?" in output
    assert "Traceback" not in output


def read_commands(page: str) -> list[list[str]]:
    lines = [line.strip() for line in (ROOT / page).read_text("utf-8").splitlines() if "torchrun --" in line]
    return [shlex.split(line) for line in lines if not line.startswith("|")]


def test_readme_and_document_have_the_same_commands() -> None:
    readme, document = read_commands("README.md"), read_commands("docs/scaling.md")
    assert len(readme) == 2
    assert [words for words in document if words in readme] == readme
    assert [words[1:] for words in document if words not in readme] == [readme[0]]
    assert document[1][0] == "KERAS_BACKEND=jax"


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_documented_commands_run(pictures: Path, tmp_path: Path, number: int) -> None:
    command = read_commands("README.md")[number]
    for name in ("pets", "imagenet/train", "imagenet/val"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(pictures)
    small = {**SETTINGS, "train.epochs": 1, "data.test": 0}
    if "imagenet" in command:  # it has validation images and crops of its own
        del small["data.validation"], small["augment.pad"]
    sets = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    words = [{"HOST": "127.0.0.1", "8": "1"}.get(word, word) for word in command]
    nodes = 2 if "--nnodes" in words else 1
    started = []
    port = find_free_port()
    try:
        for node in range(nodes):
            own = [f"{node}" if words[place - 1] == "--node-rank" else word for place, word in enumerate(words)]
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-port", str(port)]
            with (tmp_path / f"output{node}").open("w") as file:
                environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(
                    [*torchrun, *own[1:], *sets], env=environment, cwd=tmp_path, stdout=file, stderr=file
                )
                started.append(process)
        for process in started:
            process.wait(150)
    finally:
        for process in started:
            process.terminate()
            process.wait(40)
    output = "".join((tmp_path / f"output{node}").read_text() for node in range(nodes))
    assert [process.returncode for process in started] == [0] * nodes, output
    assert output.count("run folder: ") == 1
    (metrics,) = (tmp_path / "runs").glob("*/metrics.json")
    assert json.loads(metrics.read_text())["train"]["epochs"] == 1


def test_document_shows_the_committed_plan() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    (name,) = re.findall(r"\(\.\./benchmarks/results/(scaling_plan-[\w.-]+\.json)\)", text)
    result = json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))
    assert scaling_plan.make_table(result) in text
    assert {key: value for key, value in result.items() if key in scaling_plan.make_plan()} == scaling_plan.make_plan()
    assert f"{result['measured_step']['share_of_peak']:.0%}".replace("%", " %") in text


def test_ring_reduction_takes_the_computed_time() -> None:
    # 8 processes, 8 MB: 14 messages of 1 MB each at 1 MB/s.
    assert scaling_plan.compute_reduction_seconds(8e6, 8, 8e6, 0.0) == pytest.approx(14.0)
    needed = scaling_plan.count_images_needed(8e6, 1.1e9, 1e9, 8e6, 0.0)  # of 1.1 s per image
    assert 1.1 * needed / (1.1 * needed + 14.0) >= 0.9
    assert 1.1 * (needed - 1) / (1.1 * (needed - 1) + 14.0) < 0.9


# Tests without processes


class ThreadGroup:
    """A process group whose processes are threads."""

    compiled = False

    def __init__(self, rank: int, count: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count, self.slots, self.barrier = rank, count, slots, barrier

    def gather(self, values: Any) -> Any:
        self.slots[self.rank] = values
        self.barrier.wait(20)
        found = np.stack(self.slots)
        self.barrier.wait(20)
        return found

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        return [self.gather(gradient).mean(axis=0) for gradient in gradients]

    def local(self, model: Any) -> Any:
        return model

    def stop_watching(self) -> None:
        pass

    def leave(self, *, agreed: bool) -> None:
        pass


def run_together(count: int, work: Callable[[Several], Any]) -> list[Any]:
    """Calls `work` in threads that take the place of processes; returns what each returned or raised."""
    barrier, slots = threading.Barrier(count), [None] * count
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(Several(ThreadGroup(rank, count, slots, barrier)))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_result_of_process_0_reaches_all() -> None:
    calls = []

    def work(processes: Several) -> Any:
        return processes.first(lambda: calls.append(processes.rank) or {"rank": processes.rank, "ä": [1.5]})

    assert run_together(3, work) == [{"rank": 0, "ä": [1.5]}] * 3
    assert calls == [0]


def test_fault_of_process_0_is_raised_in_all() -> None:
    def fail() -> None:
        raise ShiftViTError("the disk is full")

    found = run_together(2, lambda processes: processes.first(fail))
    assert [type(each) for each in found] == [ShiftViTError, Elsewhere]
    assert str(found[1]) == "the disk is full"


def test_fault_of_any_process_is_raised_in_all() -> None:
    def work(processes: Several) -> Any:
        def fail() -> int:
            if processes.rank > 0:
                raise ShiftViTError(f"no images at {processes.rank}")
            return 5

        return processes.together(fail)

    found = run_together(3, work)
    assert [type(each) for each in found] == [Elsewhere, ShiftViTError, Elsewhere]
    assert str(found[0]) == "process 1: no images at 1"
    assert run_together(2, lambda processes: processes.together(lambda: processes.rank)) == [0, 1]


def test_uneven_numbers_of_rows_are_gathered_in_order() -> None:
    whole = np.arange(21, dtype=np.float32).reshape(7, 3)
    for count in (2, 3, 9):
        found = run_together(count, lambda processes: processes.gather(whole[processes.share(7)]))
        for rows in found:
            np.testing.assert_array_equal(rows, whole)


def test_out_of_memory_elsewhere_is_raised_once() -> None:
    def work(processes: Several) -> Any:
        try:
            if processes.rank == 1:
                raise MemoryError
            processes.average([np.ones(2)])
        except MemoryError as error:
            processes.report_memory_fault(error)
        return processes.average([np.full(2, float(processes.rank))])[0].tolist()

    assert run_together(2, work) == [[0.5, 0.5]] * 2


def test_differing_processes_are_reported() -> None:
    found = run_together(2, lambda processes: processes.check_same("the images", f"<{processes.rank}>"))
    assert "process 1 has <1> and process 0 has <0>" in str(found[0])
    assert isinstance(found[1], Elsewhere)
    assert run_together(2, lambda processes: processes.check_same("the images", "x")) == [None, None]


def test_processes_out_of_step_raise_instead_of_waiting() -> None:
    def work(processes: Several) -> Any:
        return processes.meet(1.0) if processes.rank else processes.average([np.ones(1)])

    assert all(isinstance(each, RuntimeError) for each in run_together(2, work))


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("augment", [{}, {"mixup": 0.5, "cutmix": 1.0}, {"repeats": 2, "cutmix": 1.0, "pad": 2}])
def test_shares_make_up_the_batch(count: int, augment: dict[str, Any]) -> None:
    generator = np.random.default_rng(1)
    images, labels = generator.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 5

    def batches(share: tuple[int, int]) -> Iterator[Any]:
        return EpochBatches(
            images,
            labels,
            preprocess=Preprocess(mean=100.0, std=50.0),
            augment=Augment(**augment),
            batch_size=12,
            seed=3,
            epoch=1,
            drop_remainder=count != 4,
            share=share,
        )

    whole = batches((0, 1))
    shares = [batches((rank, count)) for rank in range(count)]
    for number in range(len(whole)):
        for part, expected in enumerate(whole[number]):
            found = np.concatenate([share[number][part] for share in shares])
            np.testing.assert_array_equal(found, expected)
        assert all(share.find_indices(number).tolist() == whole.find_indices(number).tolist() for share in shares)


class TwoProcesses(Processes):
    count = 2


def make_recipe_and_data(images: int = 30, **settings: Any) -> tuple[Recipe, Dataset]:
    pixels, labels = np.zeros((images, 16, 16, 3), np.uint8), np.arange(images) % 2
    splits = {name: Split(images=pixels, labels=labels, preprocess=Preprocess()) for name in ("train", "test")}
    return Recipe.load("quick", **settings), Dataset(splits, ("a", "b"), "small")


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        ({"train.batch_size": 9}, 30, "train.batch_size=9 cannot be divided among 2 processes; use 8 or 10"),
        ({"train.batch_size": 1}, 30, "use 2, or start another number"),
        ({"train.batch_size": 32}, 15, "with 15 images of 15 training images, .* set train.batch_size=14"),
        (
            {"train.batch_size": 4, "train.drop_remainder": False},
            15,
            "with 3 images of 15 training images, .*drop_remainder=true",
        ),
        ({"train.batch_size": 4, "model.norm": "batch"}, 16, "model.norm=batch .* set model.norm=group or layer"),
    ],
)
def test_settings_that_processes_cannot_share_are_refused(settings: dict[str, Any], images: int, message: str) -> None:
    recipe, dataset = make_recipe_and_data(images, **settings)
    with pytest.raises(ShiftViTError, match=message):
        resolve(recipe, dataset, TwoProcesses())
    resolve(recipe, dataset)


def test_several_processes_train_with_fit(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, dataset = make_recipe_and_data(16, **{"train.batch_size": 4, "train.loop": "device"})
    assert resolve(recipe, dataset, TwoProcesses()).train.loop == "fit"
    assert 'these 2 train with "fit"' in capsys.readouterr().err


def test_probe_in_several_processes_is_refused() -> None:
    with pytest.raises(ShiftViTError, match="the recipe probe fits a head in one process, and 2 were started"):
        check_alone(Recipe.load("probe"), TwoProcesses())


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": "two"}, "RANK='two' must be a whole number"),
        ({"RANK": "2"}, "RANK=2 must be below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' must be a whole number of at least 1"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT='-1'"),
    ],
)
def test_faulty_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    for name, value in {**TORCHRUN, **changes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ShiftViTError, match=message):
        find_place()


@pytest.mark.parametrize("rank", [0, 1])
def test_tensorflow_is_refused_with_one_message(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in {**TORCHRUN, "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(groups, "ensure_backend", lambda: "tensorflow")
    monkeypatch.setattr(errors, "_QUIET", False)
    with pytest.raises(ShiftViTError, match="set KERAS_BACKEND=torch or jax") as refused, groups.join_processes():
        pass
    assert isinstance(refused.value, Elsewhere) == (rank == 1)


def test_one_process_has_no_place_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_place() is None
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun --nproc-per-node 1
    assert find_place() is None
