"""A stopped and resumed run ends like an uninterrupted one, for each kind of data and loop, and at any moment."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from logs import read_log
from sample import load_sample, make_tiny_recipe, write_tree
from shiftvit import Bundle, Preprocess, ShiftViT, train
from shiftvit.data.batches.pictures import read_pictures
from shiftvit.errors import Interrupted
from shiftvit.training import fit
from shiftvit.training.callbacks import Watch
from shiftvit.training.checkpoint import Progress
from tensors import set_random_weights
from train_processes import fork_servers, make_arguments, train_in, write_pictures

pytestmark = pytest.mark.usefixtures("plain_figures")


@dataclass(frozen=True)
class Scenario:
    """A way to train, and the moments at which to stop it.

    Attributes:
        start: trains in a new folder.
        resume: resumes the run in a folder.
        stops: epochs and steps, counted from 0, before which tests stop the run.
        atol: tolerance of the weights in comparison with an uninterrupted run.
    """

    start: Callable[..., Any]
    resume: Callable[[Path], Any]
    stops: tuple[tuple[int, int], ...] = ((1, 2),)
    atol: float = 0.0


def use_sample(**changes: Any) -> dict[str, Callable[..., Any]]:
    """Returns `start` and `resume` of a scenario that trains on the sample."""
    return {
        "start": lambda out: train(make_tiny_recipe(**changes), out=out, data=load_sample()),
        "resume": lambda run: train(resume=run, data=load_sample()),
    }


def use_pictures(name: str, **changes: Any) -> dict[str, Callable[..., Any]]:
    """Returns `start` and `resume` of a scenario whose pictures and source model are beside the run folder."""
    small = {"train.epochs": 2, "train.batch_size": 16, "train.precision": "float32"}
    sizes = {"preprocess.resize": 24, "preprocess.crop": 20}

    def start(out: Path) -> Any:
        own = {**small, "data.name": str(out.parent / "pets"), **fill_source(out, changes)}
        return train(name, out=out, **sizes, **own)

    return {"start": start, "resume": lambda run: train(resume=run)}


def fill_source(out: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Replaces the value "SOURCE" by the path of the trained model beside the run folder."""
    return {key: str(out.parent / "source") if value == "SOURCE" else value for key, value in changes.items()}


SCENARIOS = {
    "fit": Scenario(**use_sample(), stops=((0, 0), (0, 3), (1, 0), (1, 4))),
    "workers": Scenario(**use_sample(**{"data.workers": 3})),
    "growing": Scenario(**use_sample(**{"train.initial_scale": 0.5}), stops=((0, 3), (1, 1))),
    "accumulation": Scenario(**use_sample(**{"train.accumulate": 3, "model.norm": "batch"})),
    # jax compiles each number of steps separately, so rounding may differ.
    "device": Scenario(**use_sample(**{"train.loop": "device", "model.dropout": 0.0}), atol=1e-6),
    "own pictures": Scenario(
        **use_pictures("photos", **{"model.depths": (1, 1), "model.embed_dim": 24}), stops=((1, 1),)
    ),
    "head first": Scenario(
        **use_pictures("finetune", **{"start.source": "SOURCE", "train.freeze_epochs": 1, "train.epochs": 3}),
        stops=((0, 1), (1, 0), (1, 1)),
    ),
    "frozen": Scenario(**use_pictures("finetune", **{"start.source": "SOURCE", "start.freeze": 1}), stops=((1, 1),)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stopped")
    write_tree(root / "pets")
    model = ShiftViT((20, 20, 3), num_classes=4, patch_size=2, embed_dim=24, depths=(1, 1), norm="layer")
    set_random_weights(model)
    Bundle.from_model(model, tuple("abcd"), Preprocess(mean=120.0, std=60.0)).save(root / "source")
    return root


@pytest.fixture(autouse=True)
def _streamed_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams pictures from files, and divides an epoch on the device, so that runs can be stopped within it."""
    monkeypatch.setitem(read_pictures.__kwdefaults__, "budget", 0)
    monkeypatch.setattr("shiftvit.training.device._LONGEST", 2)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Callable[[str], Path]:
    """A function that trains a scenario without interruption, once, and returns the run folder."""

    def run(scenario: str) -> Path:
        out = folder / f"{scenario} uninterrupted"
        if not out.exists():
            SCENARIOS[scenario].start(out)
        return out

    return run


def load_state(run: Path) -> dict[str, np.ndarray]:
    """Returns the training state: weights, their averages, the optimizer, and the random generators."""
    return load_file(run / "checkpoints" / "last.safetensors")


def assert_same_end(found: Path, expected: Path, atol: float = 0.0) -> None:
    mine, wanted = load_state(found), load_state(expected)
    assert mine.keys() == wanted.keys()
    for name, value in mine.items():
        if atol and name.startswith("generator/"):  # the loop on the device draws without them
            continue
        np.testing.assert_allclose(value, wanted[name], rtol=10 * atol, atol=atol, err_msg=name)
    rows = [[row["epoch"] for row in read_log(run)] for run in (found, expected)]
    assert rows[0] == rows[1] == list(range(1, len(rows[0]) + 1))
    metrics = [json.loads((run / "metrics.json").read_text("utf-8")) for run in (found, expected)]
    if atol == 0:
        assert {**metrics[0], "train": None} == {**metrics[1], "train": None}


CASES = [
    pytest.param(
        name,
        stop,
        id=f"{name}-{stop[0]}-{stop[1]}",
        marks=pytest.mark.skipif(
            name == "device" and keras.config.backend() == "tensorflow", reason="the device loop is for jax and torch"
        ),
    )
    for name, scenario in SCENARIOS.items()
    for stop in scenario.stops
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stop"), CASES)
def test_resumed_run_ends_like_an_uninterrupted_one(
    name: str,
    stop: tuple[int, int],
    uninterrupted: Callable[[str], Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario, out = SCENARIOS[name], folder / f"{name} {stop}"
    expected = uninterrupted(name)
    begin, reached = Watch.on_train_batch_begin, []

    def interrupt(self: Watch, batch: int, logs: Any = None) -> None:
        if (self.progress.epoch, batch) == stop:
            reached.append(stop)
            self.signal = signal.SIGINT
        begin(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_train_batch_begin", interrupt)
        with pytest.raises(Interrupted, match="--resume") as caught:
            scenario.start(out)
    assert caught.value.status == 130
    assert reached == [stop]
    assert not (out / "metrics.json").exists()
    scenario.resume(out)
    assert_same_end(out, expected, scenario.atol)
    if (expected / "splits.csv").exists():
        assert (out / "splits.csv").read_bytes() == (expected / "splits.csv").read_bytes()


@pytest.mark.slow
def test_result_does_not_depend_on_the_number_of_workers(uninterrupted: Callable[[str], Path]) -> None:
    assert_same_end(uninterrupted("workers"), uninterrupted("fit"))


@pytest.mark.slow
def test_head_trains_alone_for_its_epochs_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, moved = Bundle.load(folder / "source").weights, []
    finish = fit.finish_epoch

    def record_and_finish(run: Path, model: Any, progress: Any, row: Any, *others: Any) -> None:
        moved.append({v.path: bool((v.numpy() != source[v.path]).any()) for v in model.backbone.weights})
        finish(run, model, progress, row, *others)

    monkeypatch.setattr(fit, "finish_epoch", record_and_finish)
    SCENARIOS["head first"].start(folder / "head first, watched")
    assert [any(epoch.values()) for epoch in moved] == [False, True, True]
    assert all(moved[2].values())


@pytest.mark.slow
def test_frozen_weights_stay_those_of_the_source(uninterrupted: Callable[[str], Path], folder: Path) -> None:
    """The other weights change: otherwise a comparison of final weights would prove nothing."""
    source, found = Bundle.load(folder / "source").weights, Bundle.load(uninterrupted("frozen") / "bundle").weights
    same = {path for path, value in found.items() if not path.startswith("head/") and (value == source[path]).all()}
    assert {path for path in same if path.startswith(("patch_embed", "stage1"))}
    assert not {path for path in same if path.startswith("stage2_block")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pictures for trainings in processes of their own, which are forked by one that has imported torch."""
    yield write_pictures(tmp_path_factory.mktemp("forked") / "pictures")
    fork_servers["torch"].stop()


# The first kill interrupts a new run, the others interrupt a resumed run.
KILLS = 4


def make_killer(saved: Path, chance: np.random.Generator) -> Callable[[Path], None]:
    """Returns a function that kills the process whose records are in a folder, shortly after its next save."""
    before = saved.stat().st_mtime_ns if saved.exists() else 0

    def kill(records: Path) -> None:
        deadline = time.monotonic() + 120
        while not saved.exists() or saved.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(float(chance.uniform(0, 0.1)))
        os.kill(int((records / "pid0").read_text()), signal.SIGKILL)

    return kill


@pytest.mark.slow
def test_run_killed_four_times_ends_like_an_uninterrupted_one(pictures: Path, tmp_path: Path) -> None:
    """It saves after every step, which takes about half of the time, so many kills interrupt a save."""
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "killed"
    saved = run / "checkpoints" / "last.safetensors"
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed of the kill times: {seed}")
    chance = np.random.default_rng(seed)

    def start(folder: Path) -> list[str]:
        often = {"train__epochs": 16, "train__checkpoint_minutes": "0.000001"}
        return make_arguments(pictures, folder, **often, model__dropout=0.1, model__drop_path=0.1)

    # All runs are child processes. This process may have another number of threads, which changes rounding.
    found = train_in(1, uninterrupted, start(uninterrupted))
    assert found.status == [0], found.outputs
    for number in range(KILLS):
        arguments = ["--resume", str(run)] if number else start(run)
        killed = train_in(1, run, arguments, during=make_killer(saved, chance))
        assert killed.status == [-signal.SIGKILL], killed.outputs
        load_file(saved)  # the checkpoint is complete, whenever the kill came
    found = train_in(1, run, ["--resume", str(run)])
    assert found.status == [0], found.outputs
    assert_same_end(run, uninterrupted)
    assert not list((run / "checkpoints").glob(".*"))


def test_signal_is_noted_if_nobody_reads_standard_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `shiftvit train 2>&1 | tee log`, where the signal may end `tee` first."""

    def write(*_: object) -> None:
        raise BrokenPipeError

    watch = Watch(tmp_path, Progress(), seed=0, save_every=60)
    with watch.catch_signals(), monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    assert watch.signal == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_the_run_and_prints_how_to_resume(
    pictures: Path, number: int, status: int, tmp_path: Path
) -> None:
    """Runs the command line."""
    run = tmp_path / "my run"

    def send_signal(records: Path) -> None:
        deadline = time.monotonic() + 120
        while not (run / "log.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(int((records / "pid0").read_text()), number)

    found = train_in(1, run, make_arguments(pictures, run, train__epochs=5000), during=send_signal)
    (output,) = found.outputs
    assert found.status == [status], output
    assert output.splitlines()[-1].endswith(f"shiftvit train --resume '{run}'")
    assert "Traceback" not in output
    assert (run / "checkpoints" / "last.safetensors").is_file()
