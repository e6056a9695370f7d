"""The model of this process, for page and service alike: images opened within limits, captioned in batches."""

from __future__ import annotations

import io
import math
import threading
import time
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bita.app.batching import Batcher
from bita.errors import UserError
from bita.inference.captioner import Captioner
from bita.inference.captions import Caption
from bita.processors.samples import TooLargeError, declared_size

MEBIBYTE = 2**20


def not_kept(path: Path) -> UserError:
    """Return what is said of a dropped file that was deleted meanwhile."""
    return UserError(f"{path.name}: is not kept any more; drop it again")


@dataclass(frozen=True)
class Limits:
    """What one process takes at most.

    Attributes:
        image_bytes: of an image file.
        image_pixels: of an image, width × height; the values of all bands may be four times as many.
        scene_bytes: of a raster that is read window by window.
        waiting: requests and images that may wait for the model; more are told to come again.
        batch: images that the model takes at a time.
        wait: seconds that an image waits for others, while the model is idle.
        body_seconds: in which the body of a request must have come.
    """

    image_bytes: int = 32 * MEBIBYTE
    image_pixels: int = 50_000_000
    scene_bytes: int = 2048 * MEBIBYTE
    waiting: int = 256
    batch: int = 16
    wait: float = 0.005
    body_seconds: float = 30.0


class Engine:
    """A captioner whose batches are made of whatever images come at the same time.

    Attributes:
        captioner: what `bita.load` gives.
        limits: what is taken at most.
        lock: held while the model computes; whoever asks it for more than captions holds it too.
    """

    def __init__(self, captioner: Captioner, limits: Limits | None = None) -> None:
        self.captioner, self.limits = captioner, limits or Limits()
        self.lock = threading.Lock()
        self._seconds = 0.1
        self._batcher = Batcher(
            self._work, size=self.limits.batch, wait=self.limits.wait, limit=self.limits.waiting
        )

    @property
    def waiting(self) -> int:
        """Images that wait for the model."""
        return len(self._batcher)

    @property
    def seconds_until_free(self) -> int:
        """Whole seconds, 1 at least, until those that wait now are captioned, by the speed of the last batches."""
        return max(1, math.ceil(self.waiting * self._seconds))

    def check(self, content: bytes, where: str) -> int:
        """Return the pixels of an image file, from its header: nothing is decoded; 0 where it tells none.

        Raises:
            TooLargeError: they are more than `limits.image_pixels`.
        """
        most = self.limits.image_pixels
        try:
            with warnings.catch_warnings(action="ignore"):  # of Pillow's own limit
                width, height, bands = declared_size(io.BytesIO(content))
        except Image.DecompressionBombError:  # Pillow's own limit, which names no size
            raise TooLargeError(
                f"{where}: image is refused (it has far more than {most:,} pixels, which are taken here at most: cut "
                "it into tiles)"
            ) from None
        except Exception:
            return 0  # opening it says what is wrong
        if width * height > most or width * height * bands > 4 * most:
            raise TooLargeError(
                f"{where}: image is refused ({width} × {height} pixels of {bands} bands; {most:,} pixels are taken "
                "here at most: cut it into tiles)"
            )
        return width * height

    def open(self, content: bytes, where: str) -> Image.Image:
        """Open an image file as the model's run does: 8-bit RGB.

        Raises:
            UserError: it does not open; `TooLargeError` and `NoImageError` are of their own kind.
        """
        return self.captioner.processors.eval_open.decode(content, where)

    def open_file(self, path: Path) -> Image.Image:
        """Open an image file within the limits; errors name it without its folder (see `open`).

        Raises:
            UserError: it is gone, as what was dropped is after a while.
        """
        try:
            size = path.stat().st_size
            if size > self.limits.image_bytes:
                most = self.limits.image_bytes / MEBIBYTE
                raise TooLargeError(
                    f"{path.name}: has {size / MEBIBYTE:,.0f} MiB; {most:,.0f} are taken here at most"
                )
            content = path.read_bytes()
        except FileNotFoundError:
            raise not_kept(path) from None
        self.check(content, path.name)
        return self.open(content, path.name)

    def caption(self, image: Image.Image) -> Future[Caption]:
        """Let an image wait for its turn with the model.

        Raises:
            QueueFull: too many wait already.
            Closed: the process ends.
        """
        return self._batcher.submit(image)

    def close(self) -> None:
        """Finish the batch under way; what waits ends with `Closed`."""
        self._batcher.close()

    def _work(self, images: list[Image.Image]) -> list[Caption]:
        started = time.monotonic()
        with self.lock:
            written = list(self.captioner.stream(images, batch_size=self.limits.batch))
        self._seconds += 0.3 * ((time.monotonic() - started) / len(images) - self._seconds)
        return written
