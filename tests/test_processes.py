"""Training in several processes: the same images, weights and files as in one process; all end if one ends."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from logs import read_log
from shiftvit import Recipe
from train_processes import (
    TOLERANCE,
    Outcome,
    Train,
    compute_max_difference,
    find_free_port,
    fork_servers,
    make_arguments,
    train_in,
    write_pictures,
)

on_both = pytest.mark.parametrize("backend", ["torch", "jax"])


@pytest.fixture(scope="module", autouse=True)
def _stop_fork_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # so that jax compiles each program only once
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield
    for server in fork_servers.values():
        server.stop()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("processes") / "pictures")


@pytest.fixture(scope="module")
def train_once(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Returns a function that trains in `count` processes, each combination of count, norm and backend once."""
    known: dict[Any, Outcome] = {}

    def run(count: int, norm: str = "layer", backend: str = "torch", **named: Any) -> Outcome:
        if (count, norm, backend) not in known:
            out = tmp_path_factory.mktemp("run") / "run"
            found = train_in(count, out, make_arguments(pictures, out, model__norm=norm), backend=backend, **named)
            assert found.status == [0] * count, found.outputs
            # It takes seconds to import, and is not needed.
            assert not any(record["tensorflow"] for record in found.records)
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
def test_every_process_goes_on_with_its_own_random_numbers(pictures: Path, tmp_path: Path) -> None:
    ends = {}
    for name, fault in {"whole": None, "stopped": {"rank": 0, "step": [1, 1], "kind": "signal", "signal": 15}}.items():
        run = tmp_path / name
        found = train_in(2, run, make_arguments(pictures, run, model__dropout=0.3), fault=fault)
        if fault is not None:
            assert found.status == [143, 143], found.outputs
            found = train_in(2, run, ["--resume", str(run)])
        assert found.status == [0, 0], found.outputs
        ends[name] = found.weights
    for whole, stopped in zip(ends["whole"], ends["stopped"], strict=True):
        assert compute_max_difference(whole, stopped) == 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@on_both
def test_all_end_when_one_is_killed(
    pictures: Path, train_once: Train, tmp_path: Path, backend: str, killed: int
) -> None:
    run, other = tmp_path / "run", 1 - killed
    fault = {"rank": killed, "step": [1, 1], "kind": "signal", "signal": int(signal.SIGKILL)}
    found = train_in(2, run, make_arguments(pictures, run), fault=fault, backend=backend)
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
def test_others_end_when_one_hangs(pictures: Path, tmp_path: Path, backend: str) -> None:
    run = tmp_path / "run"
    fault = {"rank": 1, "step": [1, 1], "kind": "signal", "signal": int(signal.SIGSTOP)}
    found = train_in(2, run, make_arguments(pictures, run), fault=fault, backend=backend)
    assert found.status[0] in (1, 2), found.outputs
    assert found.status[1] == -signal.SIGKILL
    assert found.outputs[0].count("--resume RUN") == 1


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


@contextlib.contextmanager
def connect_machines(tag: str) -> Iterator[tuple[list[str], str]]:
    """Yields two network namespaces, in place of two machines, and the name of the virtual cable at the second one."""
    names, cable = ([f"{kind}{os.getpid()}{tag}{letter}" for letter in "ab"] for kind in ("shiftvit", "sv"))
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
        yield names, cable[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def pull_cable(backend: str, pictures: Path, run: Path) -> tuple[Outcome, float, Outcome]:
    """Trains on two machines and pulls the cable between them in the second epoch, then resumes with the cable.

    Returns:
        what was left without the cable, the seconds until both processes had ended, and what the resumed run left.
    """
    pulled = []
    with connect_machines(backend[0]) as (names, cable):

        def set_link(state: str) -> None:
            subprocess.run(["ip", "-n", names[1], "link", "set", cable, state], check=True)

        def unplug(place: Path) -> None:
            limit = time.monotonic() + 100
            while not (place / "waiting").exists():
                assert time.monotonic() < limit
                time.sleep(0.05)
            set_link("down")
            (place / "waiting").unlink()
            pulled.append(time.monotonic())

        there: dict[str, Any] = {"networks": names, "environment": {"MASTER_ADDR": "10.213.7.1"}, "backend": backend}
        fault = {"rank": 1, "step": [1, 1], "kind": "wait"}
        found = train_in(2, run, make_arguments(pictures, run), fault=fault, during=unplug, **there)
        seconds = time.monotonic() - pulled[0]
        set_link("up")
        return found, seconds, train_in(2, run, ["--resume", str(run)], **there)


@pytest.fixture(scope="module")
def pulled_cables(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Outcome, float, Outcome]]:
    """The results of `pull_cable` for each backend, at the same time, because processes wait long before they end."""
    with ThreadPoolExecutor() as pool:
        started = {
            backend: pool.submit(pull_cable, backend, pictures, tmp_path_factory.mktemp("cable") / "run")
            for backend in ("torch", "jax")
        }
        return {backend: work.result() for backend, work in started.items()}


@pytest.mark.slow
@on_both
def test_pulled_cable_ends_both_machines(
    pulled_cables: dict[str, tuple[Outcome, float, Outcome]], train_once: Train, backend: str
) -> None:
    found, seconds, resumed = pulled_cables[backend]
    assert seconds < 30
    assert found.status == [1, 1], found.outputs
    assert [output.count("--resume RUN") for output in found.outputs] == [1, 1], found.outputs
    assert resumed.status == [0, 0], resumed.outputs
    assert compute_max_difference(resumed.weights[0], resumed.weights[1]) == 0
    assert compute_max_difference(train_once(1, backend=backend).weights[0], resumed.weights[0]) < TOLERANCE[backend]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_two_jax_processes_match_one(train_once: Train, norm: str) -> None:
    one = train_once(1, norm, backend="jax")
    with socket.create_server(("127.0.0.1", 0)) as torchrun:  # torchrun listens on the port that it announces
        there = {"MASTER_PORT": str(torchrun.getsockname()[1]), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        two = train_once(2, norm, backend="jax", environment=there)
    assert compute_max_difference(two.weights[0], two.weights[1]) == 0
    # The processes add up the statistics of a batch norm in another order.
    tolerance = 1e-5 if norm == "layer" else 2e-4
    assert compute_max_difference(one.weights[0], two.weights[0]) < tolerance
    assert two.list_images() == one.list_images()
    assert two.records[1]["written"] == []
    assert two.outputs[1] == ""
    for row, other in zip(one.load_log(), two.load_log(), strict=True):
        assert other == pytest.approx(row, abs=2 * tolerance)
    for name, found in one.load_metrics().items():
        assert two.load_metrics()[name] == pytest.approx(found, abs=2 * tolerance)


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
