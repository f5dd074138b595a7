"""Coordination of the processes of a run: exchange of texts, actions on all, decisions by the first."""

from __future__ import annotations

import collections
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from diffusion_jax.errors import InputError, RunError, reason
from diffusion_jax.lifecycle import stopping

T = TypeVar("T")

EXCHANGE_TIMEOUT = 1200.0

_exchanges: dict[str, Any] = collections.defaultdict(itertools.count)


def exchange(name: str, text: str, timeout: float = EXCHANGE_TIMEOUT) -> list[str]:
    """Returns the text of every process, in order of their indices; waits for all of them.

    The texts go through the coordination service rather than the devices: a device computation on a
    background thread could interleave with those of the training.

    Args:
      name: Name of the exchange; every process calls this equally often for each name.
      text: Text of this process.
      timeout: Seconds to wait for the others; `math.inf`: as long as they live, which `peers` watches.
    """
    if jax.process_count() == 1:
        return [text]
    service = client()
    key = f"diffusion_jax/{name}/{next(_exchanges[name])}"
    service.key_value_set(f"{key}/{jax.process_index()}", f"={text}")
    deadline = time.monotonic() + timeout
    texts = [_get(f"{key}/{i}", deadline) for i in range(jax.process_count())]
    return [text[1:] for text in texts]


def _get(key: str, deadline: float) -> str:
    """Waits for a text in calls of one second, since Python handles signals only between calls."""
    while True:
        try:
            return client().blocking_key_value_get(key, 1000)
        except Exception as error:
            stopping.check()
            if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() > deadline:
                raise


def run_on_all(name: str, action: Callable[[], T], timeout: float = EXCHANGE_TIMEOUT) -> T:
    """Runs an action on every process; if it fails on one, every process raises.

    Args:
      name: See `exchange`.
      action: Function to call; each process gets its own value.
      timeout: See `exchange`.

    Raises:
      Exception: The error of this process's own action.
      RunError: The action failed on another process; an InputError there is raised as one here.
    """
    error, value = None, None
    try:
        value = action()
    except Exception as raised:
        error = raised
    outcome = {"reason": reason(error), "input": isinstance(error, InputError)} if error else {}
    outcomes = [json.loads(text) for text in exchange(name, json.dumps(outcome), timeout)]
    if error is not None:
        raise error
    for process, outcome in enumerate(outcomes):
        if outcome:
            kind = InputError if outcome["input"] else RunError
            raise kind(f"process {process}: {outcome['reason']}")
    return value  # pyright: ignore[reportReturnType]


def run_on_first(name: str, work: Callable[[], T], timeout: float = math.inf) -> T | None:
    """Runs long work on process 0 and returns its value there; the others wait, and get None.

    They wait as long as process 0 lives: without this they would wait for it where JAX or an exchange soon gives up.

    Args:
      name: See `exchange`.
      work: Function called on process 0 alone.
      timeout: See `exchange`.

    Raises:
      Exception: The error of `work`; on the other processes as in `run_on_all`.
    """
    return run_on_all(name, work if jax.process_index() == 0 else lambda: None, timeout)


def broadcast_from_first(
    name: str, decide: Callable[[], T], timeout: float = EXCHANGE_TIMEOUT
) -> T:
    """Returns the decision of process 0 on every process.

    The others do not decide by themselves: a shared folder may have changed meanwhile, or not show changes there yet.

    Args:
      name: See `exchange`.
      decide: Function called on process 0 alone; its value must be JSON-serializable.
      timeout: See `exchange`; `math.inf` for long work.

    Raises:
      Exception: The error of `decide`; on the other processes as in `run_on_all`.
    """
    decided = run_on_first(name, decide, timeout)
    return json.loads(exchange(name, json.dumps(decided))[0])


def arrays_of_first(name: str, make: Callable[[], Any], shapes: Any) -> Any:
    """Returns a tree of arrays of process 0 on every process, equal to the last bit.

    Call it where no other computation of the devices runs, as the arrays go through them.

    Args:
      name: See `exchange`.
      make: Function called on process 0 alone; it may take long.
      shapes: The tree with shapes and dtypes, on every process.

    Raises:
      Exception: The error of `make`; on the other processes as in `run_on_all`.
    """
    made = run_on_first(name, make)
    if jax.process_count() == 1:
        return made
    from jax.experimental import multihost_utils

    if made is None:
        made = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    # As bytes, since they are summed with the others' zeros: a negative zero would lose its sign.
    sent = jax.tree.map(lambda array: np.ascontiguousarray(array).view(np.uint8), made)
    received = multihost_utils.broadcast_one_to_all(sent)
    return jax.tree.map(
        lambda leaf, array: np.asarray(array).view(leaf.dtype).reshape(leaf.shape), shapes, received
    )


def is_another_than_first() -> bool:
    """Whether this is one of several processes and not the first; initializes no devices."""
    return jax.distributed.is_initialized() and jax.process_index() > 0


def client() -> Any:
    """Returns JAX's client of the coordination service, which must be running."""
    from jax._src import distributed  # The key-value store has no public API.

    return distributed.global_state.client


def coordinator() -> str:
    """Returns the address of the coordination service, host:port."""
    from jax._src import distributed

    return str(distributed.global_state.coordinator_address)


def assert_same_command(what: str, mine: Mapping[str, object]) -> None:
    """Raises if the processes were started with different values; every process calls this.

    Args:
      what: Name of the exchange, see `exchange`.
      mine: JSON-serializable values of this process by name.

    Raises:
      InputError: Values differ from process 0's; raised on every process, with the first differences.
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
