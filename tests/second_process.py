"""The second of two processes, of which the test is the first: it says what the first would."""

import collections
import json
from typing import Any

import jax
import pytest

from diffusion_jax.parallel import distributed


class First:
    """What process 0 says, and how long it was waited for.

    Attributes:
      waits: Names of exchanges with their timeouts, in order.
    """

    def __init__(self, decisions: dict[str, Any], failures: dict[str, str]) -> None:
        self._decisions, self._failures = decisions, failures
        self._calls: collections.Counter[str] = collections.Counter()
        self.waits: list[tuple[str, float]] = []

    def exchange(
        self, name: str, text: str, timeout: float = distributed.EXCHANGE_TIMEOUT
    ) -> list[str]:
        self.waits.append((name, timeout))
        self._calls[name] += 1
        if name in self._failures:
            return [json.dumps({"reason": self._failures[name], "input": False}), text]
        decides = name in self._decisions and self._calls[name] % 2 == 0
        return [json.dumps(self._decisions[name] if decides else {}), text]


def follow(
    monkeypatch: pytest.MonkeyPatch,
    decisions: dict[str, Any],
    failures: dict[str, str] | None = None,
) -> First:
    """Makes this process the second one.

    Args:
      monkeypatch: Undoes it.
      decisions: What process 0 decides, by name of the exchange.
      failures: Why process 0 fails, by name of the exchange.
    """
    first = First(decisions, failures or {})
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(distributed, "exchange", first.exchange)
    return first
