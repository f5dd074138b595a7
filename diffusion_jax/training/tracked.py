"""The averages of the parameters that a training tracks: their names in its state, and what asks for them."""

from __future__ import annotations

import dataclasses

from diffusion_jax.training.averages import Exponential, PowerFunction, Profile
from diffusion_jax.training.optimizer import Decay, ema_decay, exact_ema_decay, power_decay

AVERAGE = "default"  # Name of the average that is sampled from unless told otherwise.


@dataclasses.dataclass(frozen=True)
class Tracked:
    """The averages that a training tracks.

    An average is asked for by `ema`: True for the main one, False for the parameters themselves, or a decay; or by
    `ema_length`, the relative length of a power function. It need not be tracked.

    Attributes:
      decay: Decay of the main average.
      warmup: Whether the decays rise at the start.
      decays: Decays of further averages; that of the main one is tracked once.
      lengths: Relative lengths of power-function averages.
    """

    decay: float
    warmup: bool = True
    decays: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()

    def name(self, ema: bool | float, ema_length: float | None = None) -> str | None:
        """Returns the name of an average in the state; None: the parameters themselves."""
        if ema_length is not None:
            return _length_name(ema_length)
        if isinstance(ema, bool):
            return AVERAGE if ema else None
        return AVERAGE if ema == self.decay else _decay_name(ema)

    def profile(self, ema: bool | float, ema_length: float | None = None) -> Profile:
        """Returns the weights of the steps in an average."""
        return Exponential(ema, self.warmup) if ema_length is None else PowerFunction(ema_length)

    @property
    def length_names(self) -> dict[float, str]:
        """Names of the power-function averages, by their lengths."""
        return {length: _length_name(length) for length in self.lengths}

    def make(self) -> dict[str, Decay]:
        """Returns the decays of all averages, by name."""
        main: dict[str, Decay] = {AVERAGE: ema_decay(self.decay, warmup=self.warmup)}
        further = {
            _decay_name(decay): exact_ema_decay(decay, warmup=self.warmup)
            for decay in self.decays
            if decay != self.decay
        }
        lengths = {name: power_decay(length) for length, name in self.length_names.items()}
        return main | further | lengths

    def __str__(self) -> str:
        """Lists what asks for each of the averages on the command line."""
        asked = [
            f"sample.ema=true (decay {self.decay})",
            *(f"sample.ema={decay}" for decay in self.decays if decay != self.decay),
            *(f"sample.ema_length={length}" for length in self.lengths),
        ]
        return ", ".join(asked)


def _decay_name(decay: float) -> str:
    return f"decay_{float(decay)!r}"


def _length_name(length: float) -> str:
    return f"length_{float(length)!r}"
