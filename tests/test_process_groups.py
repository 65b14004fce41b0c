"""What processes agree on, tested with threads in their place: results, faults, shares of a batch, and settings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shiftvit import Recipe, ShiftViTError, errors
from shiftvit.augment.augment import Augment
from shiftvit.data.batches.host import EpochBatches
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import Elsewhere
from shiftvit.preprocess import Preprocess
from shiftvit.training import groups
from shiftvit.training.place import find_place
from shiftvit.training.processes import Group, Processes, Several
from shiftvit.training.setup import check_alone, check_same_start, choose_precision, resolve
from shiftvit.training.torch_group import TorchGroup


class ThreadGroup(Group):
    """A process group whose processes are threads."""

    def __init__(self, rank: int, count: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count, self.slots, self.barrier = rank, count, slots, barrier

    def gather(self, values: Any, into: Any) -> None:
        self.slots[self.rank] = values
        self.barrier.wait(20)
        into[:] = np.stack(self.slots)
        self.barrier.wait(20)

    def average(self, gradients: Sequence[Any], meet: Callable[[], Any]) -> list[Any]:
        found = [np.empty((self.count, *gradient.shape)) for gradient in gradients]
        meet()
        for gradient, rows in zip(gradients, found, strict=True):
            self.gather(gradient, rows)
        return [rows.mean(axis=0) for rows in found]

    def leave(self, *, agreed: bool) -> None:
        pass


class TorchThreads(ThreadGroup):
    """Averages as `TorchGroup` does; in process 1, memory runs out the first time."""

    average = TorchGroup.average

    def __init__(self, *place: Any) -> None:
        super().__init__(*place)
        self._torch = self._distributed = self
        self.fails = self.rank == 1

    def cat(self, tensors: Any) -> Any:
        if self.fails:
            self.fails = False
            raise MemoryError
        return pytest.importorskip("torch").cat(tensors)

    def all_reduce(self, flat: Any) -> None:
        rows = np.empty((self.count, len(flat)))
        self.gather(flat.numpy(), rows)
        flat.numpy()[:] = rows.sum(axis=0)


def run_together(count: int, work: Callable[[Several], Any], group: type[ThreadGroup] = ThreadGroup) -> list[Any]:
    """Calls `work` in threads that take the place of processes; returns what each returned or raised."""
    barrier, slots = threading.Barrier(count), [None] * count
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(Several(group(rank, count, slots, barrier)))
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


def test_out_of_memory_within_an_average_is_raised_in_all() -> None:
    """A process that fails after the last meeting would leave the others waiting in the exchange."""
    torch = pytest.importorskip("torch")

    def work(processes: Several) -> Any:
        gradients = [torch.full((2,), float(processes.rank)), torch.ones(1, 1)]
        try:
            return processes.average(gradients)
        except MemoryError as error:
            processes.report_memory_fault(error)
        return [mean.tolist() for mean in processes.average(gradients)]

    assert run_together(2, work, TorchThreads) == [[[0.5, 0.5], [[1.0]]]] * 2


def test_out_of_memory_within_a_gather_is_raised_in_all() -> None:
    def work(processes: Several) -> Any:
        try:
            # Process 1 has no memory for as many columns.
            return processes.gather(np.broadcast_to(np.uint8(1), (1, 2**55 if processes.rank == 1 else 1)))
        except MemoryError as error:
            processes.report_memory_fault(error)
        return processes.gather(np.full((1, 1), processes.rank)).tolist()

    assert run_together(2, work) == [[[0], [1]]] * 2


def test_differing_processes_are_reported() -> None:
    found = run_together(2, lambda processes: processes.check_same("the images", f"<{processes.rank}>"))
    assert "process 1 has <1> and process 0 has <0>" in str(found[0])
    assert isinstance(found[1], Elsewhere)
    assert run_together(2, lambda processes: processes.check_same("the images", "x")) == [None, None]


@pytest.mark.parametrize("source", [None, "cifar10"])
def test_processes_must_start_from_the_same_weights(source: str | None) -> None:
    recipe = Recipe.load("quick", **{"start.source": source})

    def check(weights: Sequence[float]) -> list[Any]:
        def work(processes: Several) -> None:
            weight = SimpleNamespace(numpy=lambda: np.array(weights[processes.rank]))
            check_same_start(recipe, SimpleNamespace(backbone=SimpleNamespace(weights=[weight])), processes)

        return run_together(2, work)

    assert check([0.5, 0.5]) == [None, None]
    first, other = check([0.5, 0.25])
    if source is None:  # random weights follow from the seed
        assert (first, other) == (None, None)
    else:
        assert "different weights from start.source='cifar10' (their SHA-256): process 1 has" in str(first)
        assert isinstance(other, Elsewhere)


@pytest.mark.parametrize(
    ("wanted", "fast", "chosen"),
    [
        ("auto", [True, True], "mixed_bfloat16"),
        ("auto", [True, False], "float32"),
        ("mixed_bfloat16", [False, True], "mixed_bfloat16"),
    ],
)
def test_processes_on_unlike_machines_have_one_precision(
    wanted: str, fast: list[bool], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, this = Recipe.load("quick", **{"train.precision": wanted}), threading.local()
    monkeypatch.setattr("shiftvit.environment.computes_bfloat16", lambda: fast[this.rank])

    def choose(processes: Several) -> str:
        this.rank = processes.rank
        return choose_precision(recipe, processes).train.precision

    assert run_together(2, choose) == [chosen, chosen]


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
