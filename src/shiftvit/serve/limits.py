"""`Limits`: the limits of the server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from shiftvit.errors import ShiftViTError

# Lower than the limits for files, because these pictures are untrusted.
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 36_000_000
_BATCH_PIXELS = 2**18


@dataclass(frozen=True)
class Limits:
    """The limits of the server.

    Attributes:
        max_batch: the most images in a batch; None: chosen by `Limits.choose_batch_size`.
        queue: the most images that may wait, for each model; more are refused with status 503.
        max_bytes: the largest body of a request.
        max_pixels: the largest picture, height * width.
        timeout: seconds for a body to arrive, for a result, and for the queue to empty when the server stops.
        header_timeout: seconds for the head of a request to arrive.
        max_connections: the most open connections; more are refused with status 503.
    """

    max_batch: int | None = None
    queue: int = 256
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    timeout: float = 30.0
    header_timeout: float = 10.0
    max_connections: int = 512

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and not 0 < value < 2**40:
                usual = "the model's own" if entry.default is None else entry.default
                raise ShiftViTError(f"{entry.name}={value} must be more than 0; leave it out for {usual}")

    def choose_batch_size(self, height: int, width: int) -> int:
        """Returns the largest batch of images of this size: `max_batch`, unless that is None.

        A batch is worth it only if it fits into the processor's cache: 64 images of 64x64 pixels, or 5 of 224x224.
        """
        return self.max_batch or min(64, max(1, _BATCH_PIXELS // (height * width)))

    @property
    def max_buffered(self) -> int:
        """The most bytes of all bodies in memory, and of the pixels that wait for each model.

        Requests beyond it are refused with status 503.
        """
        return max(8 * self.max_bytes, 256 * 2**20)
