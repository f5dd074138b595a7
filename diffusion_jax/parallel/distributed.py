"""What the processes of one run agree on: they exchange texts, do things alike, and let the first decide."""

import collections
import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from diffusion_jax.errors import InputError, RunError, reason
from diffusion_jax.lifecycle import stopping

T = TypeVar("T")

EXCHANGE_TIMEOUT = 1200

_exchanges: dict[str, Any] = collections.defaultdict(itertools.count)


def exchange(name: str, text: str) -> list[str]:
    """Returns the text of every process, in their order; waits for all of them.

    The coordination service carries the texts, not the devices: a device computation of a background
    thread could cross those of the training.

    Args:
      name: Names the occasion; every process calls this equally often for each name.
      text: What this process has to say.
    """
    if jax.process_count() == 1:
        return [text]
    service = client()
    key = f"diffusion_jax/{name}/{next(_exchanges[name])}"
    service.key_value_set(f"{key}/{jax.process_index()}", f"={text}")
    deadline = time.monotonic() + EXCHANGE_TIMEOUT
    texts = [_get(f"{key}/{i}", deadline) for i in range(jax.process_count())]
    return [text[1:] for text in texts]


def _get(key: str, deadline: float) -> str:
    """Waits for a text, a second at a time: Python sees a signal only between two questions."""
    while True:
        try:
            return client().blocking_key_value_get(key, 1000)
        except Exception as error:
            stopping.check()
            if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() > deadline:
                raise


def run_on_all(name: str, action: Callable[[], T]) -> T:
    """Does the action on every process; if it fails on one, every process raises.

    Args:
      name: See `exchange`.
      action: What to do; each process gets the value of its own.

    Raises:
      Exception: What this process's own action raised.
      RunError: What another one's did. An InputError there is one here.
    """
    error, value = None, None
    try:
        value = action()
    except Exception as raised:
        error = raised
    outcome = {"reason": reason(error), "input": isinstance(error, InputError)} if error else {}
    outcomes = [json.loads(text) for text in exchange(name, json.dumps(outcome))]
    if error is not None:
        raise error
    for process, outcome in enumerate(outcomes):
        if outcome:
            kind = InputError if outcome["input"] else RunError
            raise kind(f"process {process}: {outcome['reason']}")
    return value  # pyright: ignore[reportReturnType]


def broadcast_from_first(name: str, decide: Callable[[], T]) -> T:
    """Returns what process 0 decides, on every process; the others do not look for themselves.

    What they would look at, a folder that all share, may have changed by then, or not show there yet.

    Args:
      name: See `exchange`.
      decide: Called on process 0 alone; its value must be JSON-serializable.

    Raises:
      Exception: What `decide` raised; on the other processes as in `run_on_all`.
    """
    decided: Any = run_on_all(name, decide if jax.process_index() == 0 else lambda: None)
    return json.loads(exchange(name, json.dumps(decided))[0])


def is_another_than_first() -> bool:
    """Whether this is one of several processes and not the first; starts no device."""
    return jax.distributed.is_initialized() and jax.process_index() > 0


def client() -> Any:
    """Returns JAX's client of the coordination service, of which there must be one."""
    from jax._src import distributed  # There is no public way to the key-value store.

    return distributed.global_state.client


def coordinator() -> str:
    """Returns the address of the coordination service, host:port."""
    from jax._src import distributed

    return str(distributed.global_state.coordinator_address)


def assert_same_command(what: str, mine: Mapping[str, object]) -> None:
    """Refuses processes that were started with different values; every process calls this.

    Args:
      what: Names the occasion, see `exchange`.
      mine: This process's values by name, JSON-serializable.

    Raises:
      InputError: On every process; it names the first values that differ from process 0's.
    """
    texts = exchange(what, json.dumps(mine, sort_keys=True))
    first = json.loads(texts[0])
    for process, text in enumerate(texts):
        other = json.loads(text)
        differing = [
            f"{name} is {first.get(name)!r} on process 0 and {other.get(name)!r} on process {process}"
            for name in sorted(first.keys() | other.keys())
            if first.get(name) != other.get(name)
        ]
        if differing:
            raise InputError(f"the processes were started differently: {'; '.join(differing[:3])}")
