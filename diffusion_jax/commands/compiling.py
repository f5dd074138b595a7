"""A line on standard error about each compilation that takes long, since nothing else moves meanwhile."""

from __future__ import annotations

import functools
import sys
import threading

import jax

from diffusion_jax.parallel import distributed

AFTER = 5.0  # Seconds.
# What a compiled function is called in such a line; another one's own name says enough.
NAMES = {
    "train_step": "the train step",
    "multi_step": "several train steps in one program",
    "draw": "the sampler",
    "losses_of": "the held-out loss",
    "metric_of": "the metric",
    "features_of": "the features' network",
}
# What JAX tells of: a scalar as it begins, a duration at the end, and in between an event if the program is kept.
_COMPILATION = "/jax/core/compile/backend_compile_duration"
_KEPT = "/jax/compilation_cache/compile_requests_use_cache"


class Announcer:
    """Listens to JAX; tells of a compilation once, `AFTER` seconds after its beginning, if it has not ended.

    It does not tell of a program that is found in the compilation cache, since reading it is faster than that.
    """

    def __init__(self) -> None:
        self._timers: dict[int, threading.Timer] = {}  # By thread: each compiles one at a time.
        self._kept: set[int] = set()

    def begin(self, event: str, value: object, **about: object) -> None:
        """Notes what has begun."""
        del value
        if event == _COMPILATION:
            thread = threading.get_ident()
            self._kept.discard(thread)
            name = str(about.get("fun_name", "a program"))
            timer = threading.Timer(AFTER, self._tell, (thread, name))
            timer.daemon = True
            self._timers[thread] = timer
            timer.start()

    def note(self, event: str, **_: object) -> None:
        """Notes that the program is one of those that are kept: not all can be, such as those that call the host."""
        if event == _KEPT:
            self._kept.add(threading.get_ident())

    def end(self, event: str, duration_secs: object, **_: object) -> None:
        """Notes what has ended."""
        del duration_secs
        if event == _COMPILATION and (timer := self._timers.pop(threading.get_ident(), None)):
            timer.cancel()

    def _tell(self, thread: int, name: str) -> None:
        if distributed.is_another_than_first():
            return
        from tqdm import tqdm

        name = name.removeprefix("jit(").removesuffix(")")
        cache = jax.config.values.get("jax_compilation_cache_dir")
        kept = (
            f"; it is kept for the next start in {cache}" if cache and thread in self._kept else ""
        )
        tqdm.write(f"compiling {NAMES.get(name, name)}, which takes a while{kept}", file=sys.stderr)


@functools.cache
def announce_long_compilations() -> None:
    """Tells of long compilations from now on, once however often it is called."""
    announcer = Announcer()
    jax.monitoring.register_scalar_listener(announcer.begin)
    jax.monitoring.register_event_listener(announcer.note)
    jax.monitoring.register_event_duration_secs_listener(announcer.end)
