"""Callbacks of Keras' `fit`: position, interrupts, timed checkpoints, losses that are not finite, the progress bar."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np

from shiftvit import files
from shiftvit.console import Bar
from shiftvit.errors import Interrupted, ShiftViTError, suggest_install
from shiftvit.training.checkpoint import (
    Progress,
    collect_generators,
    make_divergence_error,
    save_checkpoint,
    set_generators,
)
from shiftvit.training.processes import ALONE, Processes
from shiftvit.training.runfolder import find_checkpoint

# The narrowest terminal, in columns, on which the bar has room for the rate of the input.
_WIDE = 100


class Watch(keras.callbacks.Callback):
    """Counts steps. Between steps it saves checkpoints, and stops on a signal or a loss that is not finite.

    It does this at the beginning of a batch, where Keras calls it from the training thread after the previous step. A
    callback at the end of a batch would make Keras wait for the device at every step. The one here is marked as
    `async_safe` and only stores the loss.
    """

    async_safe = True

    def __init__(
        self, run: Path, progress: Progress, seed: int, save_every: float, processes: Processes = ALONE
    ) -> None:
        super().__init__()
        self.run = run
        self.processes = processes
        self.last = find_checkpoint(run)
        self.progress = progress
        self.seed = seed
        self.save_every = save_every
        self.first_step = progress.step
        self.saved_at = self.counted_at = time.monotonic()
        self.signal: int | None = None  # the signal that this process received
        self.stop: int | None = None  # the signal on which all processes agreed to stop
        self.is_finishing = False  # whether training is over and its state saved, so that a signal may stop at once
        self.losses: list[tuple[int, Any]] = []  # (step, loss) since the last call of `agree`
        # Returns the names of the images in a batch, given its number from 0; None: they are unknown.
        self.images_of: Callable[[int], list[str]] | None = None
        # Returns how many images/s the input could prepare; None: the images are on the device.
        self.input_rate: Callable[[], float] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.first_step = self.progress.step
        self.counted_at = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.progress.step = self.first_step + batch
        due = self.agree()
        if batch == 0:
            set_generators(self.seed, self.progress, self.last, self.processes.rank)
        if due or self.stop is not None:
            self.count_time()
            generators = collect_generators(self.processes)
            self.processes.first(lambda: save_checkpoint(self.last, self.model, self.progress, generators))
            self.saved_at = time.monotonic()
        self.stop_if_asked()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append((self.first_step + batch, (logs or {}).get("loss", 0.0)))

    def count_time(self) -> None:
        """Adds the seconds since the last call to the training time."""
        now = time.monotonic()
        self.progress.seconds += now - self.counted_at
        self.progress.fit_seconds += now - self.counted_at
        self.counted_at = now

    def agree(self) -> bool:
        """Decides together with the other processes whether to stop. Returns whether a checkpoint is due.

        Raises:
            ShiftViTError: a loss is NaN or infinite. The last checkpoint is from before that step. `not_finite.json` in
                the run folder names the images of the batch.
        """
        losses, self.losses = self.losses, []
        broken = [(batch, float(loss)) for batch, loss in losses if not math.isfinite(loss)]
        batch, loss = broken[0] if broken else (math.inf, 0.0)
        due = time.monotonic() - self.saved_at > self.save_every
        signals, dues, batches, found = self.processes.meet(self.signal or 0, due, batch, loss).T
        self.stop = int(signals.max()) or None
        if np.isfinite(batches).any():
            first = int(batches.argmin())
            self.processes.first(lambda: self._raise_not_finite(int(batches[first]), float(found[first])))
        return bool(dues[0])

    def _raise_not_finite(self, batch: int, loss: float) -> None:
        """Raises the error for a loss that is not finite."""
        self.progress.step = batch + 1  # steps are counted from 1 in messages
        what = f"the loss is {loss}"
        if self.images_of is not None:
            images = self.images_of(batch)
            fault = {"epoch": self.progress.epoch + 1, "step": batch + 1, "loss": str(loss), "images": images}
            files.write_json(self.run / "not_finite.json", fault)
            what = f"the loss is {loss} after a batch with {images[0]} (all its images: {self.run / 'not_finite.json'})"
        raise make_divergence_error(what, self.progress, self.last.parent)

    def stop_if_asked(self) -> None:
        """Raises Interrupted if the processes agreed to stop. Call it only once the state is saved."""
        if self.stop is not None:
            raise Interrupted(self.stop, self.run)

    @contextlib.contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into a stop after the current step; a second SIGINT stops at once.

        Raises:
            Interrupted: a signal came when the state was saved and nothing was left to train.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals only to the main thread
            return

        def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            at_once = self.is_finishing or (self.signal is not None and number == signal.SIGINT)
            self.signal = number
            if at_once:
                raise KeyboardInterrupt
            if self.processes.rank == 0:  # torchrun sends the signal to all processes
                # Not `print`: the handler may run within one. If `tee` reads the pipe, Ctrl-C has ended it as well.
                with contextlib.suppress(OSError):
                    os.write(2, b"\nshiftvit: stopping after this step; press Ctrl-C again to stop at once\n")

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except KeyboardInterrupt:
            if self.is_finishing and self.signal is not None:
                raise Interrupted(self.signal, self.run) from None
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class ProgressBar(keras.callbacks.Callback):
    """Shows loss, accuracy, images/s and time left if there is a terminal, and always prints a line for each epoch."""

    async_safe = True

    def __init__(self, sizes: Sequence[tuple[int, int]], steps: int, batch_size: int, watch: Watch) -> None:
        """Takes the (height, width) of each epoch's images: the cost of a step grows with their pixels."""
        super().__init__()
        self.steps, self.batch_size, self.watch = steps, batch_size, watch
        pixels = [height * width for height, width in sizes]
        self.costs = [count // math.gcd(*pixels) for count in pixels]
        self.epochs = len(self.costs)
        self.bar = Bar(f"epoch 1/{self.epochs}", steps * sum(self.costs), done=self.count_done(watch.progress.step))
        self.epoch = 1
        self.began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.began, self.epoch = time.monotonic(), epoch + 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.bar.columns:
            return
        rate = (batch + 1) * self.batch_size / max(time.monotonic() - self.began, 1e-9)
        logs = logs or {}
        state = f"loss {logs.get('loss', 0):.3f}  top-1 {logs.get('top1', 0):.1%}  {rate:,.0f} images/s"
        if self.watch.input_rate is not None and self.bar.columns >= _WIDE:
            state += f" (input {self.watch.input_rate():,.0f})"
        done = self.count_done(self.watch.first_step + batch + 1)
        self.bar.update(done, state, f"epoch {self.epoch}/{self.epochs}")

    def count_done(self, step: int) -> int:
        """Returns the cost of all steps before step `step` of the current epoch."""
        epoch = self.watch.progress.epoch
        current = self.costs[epoch] if epoch < self.epochs else 0  # a finished run may be resumed to be evaluated
        return self.steps * sum(self.costs[:epoch]) + step * current

    def print_epoch(self, row: dict[str, Any]) -> None:
        """Prints one epoch's figures."""
        parts = [
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}",
            f"loss {row['loss']:.3f}",
            f"top-1 {row['top1']:6.2%}",
        ]
        if "val_top1" in row:
            parts += [f"val loss {row['val_loss']:.3f}", f"val top-1 {row['val_top1']:6.2%}"]
        rate = f"{row['images_per_second']:,.0f} images/s"
        if "input_images_per_second" in row:
            rate += f" (input {row['input_images_per_second']:,.0f})"
        self.bar.print("  ".join([*parts, rate, f"{row['seconds']:.0f} s"]))


class TensorBoardLog:
    """Writes the figures of epochs, and those of the test, as TensorBoard scalars, to `tensorboard/` in the run folder.

    Raises:
        ShiftViTError: TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ShiftViTError(f"--tensorboard needs TensorBoard; {suggest_install('tensorboard')}") from error
        self.make_writer, self.folder = Writer, run / "tensorboard"
        self.writer: Any = None

    def begin(self, history: list[dict[str, Any]]) -> None:
        """Writes the rows of a resumed run's earlier epochs.

        They replace its event files, which lack the epochs that ran without TensorBoard.
        """
        if self.writer is not None:  # the run goes on in smaller parts
            return
        for path in self.folder.glob("events.out.tfevents.*"):
            path.unlink()
        for row in history:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        """Adds the scalars of a row, at the step `row["epoch"]`."""
        if self.writer is None:  # only now, so that a run that fails to start leaves nothing behind
            self.writer = self.make_writer(str(self.folder))
        for key, value in row.items():
            if key != "epoch":
                self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()
