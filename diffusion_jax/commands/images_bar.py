"""Progress of an image job: a bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import datetime
import sys
import time

import jax

from diffusion_jax.lifecycle import stopping

LINE_EVERY = 30.0  # Seconds between two lines where nobody looks.
BAR = "{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class ImagesBar:
    """Images a second and the time left, of a job done in batches; only process 0 shows it.

    Attributes:
      finished: Images that an earlier start has done.
      progress: Host function for a compiled loop, called with the network passes done of the batch; None where
        nobody looks, since a program that reports to the host is compiled anew each time.
    """

    def __init__(self, num_images: int, passes: int, batch_size: int, *, finished: int = 0) -> None:
        """Starts the clock.

        Args:
          num_images: Images of the whole job.
          passes: Network passes an image, as `progress` counts them.
          batch_size: Images at once.
          finished: Images that an earlier start has done.
        """
        from tqdm import tqdm

        self._shown = jax.process_index() == 0
        visible = self._shown and sys.stderr.isatty()
        self._total, self._passes, self._batch = num_images, passes, min(batch_size, num_images)
        self.finished = self._base = self._at = finished
        self._started = self._told = time.monotonic()
        self._bar = tqdm(
            total=num_images, initial=finished, unit="img", disable=not visible, bar_format=BAR
        )
        self.progress = self._progress if visible and jax.process_count() == 1 else None

    def _progress(self, passes: int) -> None:
        # Each device reports, and one may be behind another.
        self._at = min(self._base + passes * self._batch / self._passes, self._total)
        self._bar.update(max(0, self._at - self._bar.n))

    def advance(self, passes: int) -> None:
        """Shows that the images of the batch at work have had so many network passes."""
        self._progress(passes)
        self._tell()

    def done(self, num_images: int) -> None:
        """Counts the images of a batch that is done and kept.

        Raises:
          Stopped: A signal came.
        """
        jax.effects_barrier()  # The last calls of `progress` still use the old base.
        self._base += num_images
        self._at = self._base
        self._bar.update(self._base - self._bar.n)
        self._tell()
        stopping.check()

    def skip(self, num_images: int) -> None:
        """Counts images that an earlier start has done, as are found after the job has begun."""
        self.finished += num_images
        self._base += num_images
        self._at = self._base
        self._bar.update(num_images)

    def _tell(self) -> None:
        """Prints a line where nobody sees the bar, unless the last one is fresh."""
        now = time.monotonic()
        if self._shown and self._bar.disable and now - self._told > LINE_EVERY:
            self._told = now
            print(self._line(now - self._started), file=sys.stderr)

    def _line(self, seconds: float) -> str:
        rate = (self._at - self.finished) / seconds
        left = datetime.timedelta(seconds=round((self._total - self._at) / rate))
        done = f"{self._at:.1f}".removesuffix(".0")  # Of a batch at work, a share.
        return f"{done} of {self._total} images  images/s {rate:.3g}  left {left}"

    def __enter__(self) -> ImagesBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
