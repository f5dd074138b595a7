"""A diffusion model: a process, a network, and the meaning of the network's output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError, expect
from diffusion_jax.models.denoiser import Denoise, Prediction, complete
from diffusion_jax.models.preconditioning import PREDICTIONS, Preconditioning
from diffusion_jax.processes.grid import check_process
from diffusion_jax.processes.process import Point, Process

# A network as a pure function, (params, x, time, labels=None, dropout_keys=None) -> output: images x of shape
# (b, *dims), float time and integer labels of shape (b,); keys of shape (b,) turn dropout on, and denoisers pass none.
# The output has the shape of x, or twice its channels. `networks.as_functions` makes one from a Linen module.
Network = Callable[..., Array]


class Output(NamedTuple):
    """The output of a network for x_t.

    Attributes:
      mean: The network's prediction.
      fraction: As in `Prediction`; None if the network has no channels for it.
    """

    mean: Float[Array, " b *dims"]
    fraction: Float[Array, " b *dims"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A process, and a network that predicts x_0 and eps from x_t.

    Attributes:
      process: How signal and noise depend on time.
      prediction: What the network predicts: a name in `PREDICTIONS`, such as "eps", or a `Preconditioning`, such as
        `edm(sigma_data=0.3)`.
      network: (params, x, time, labels=None, dropout_keys=None) -> output of the shape of x, or with twice its
        channels, the second half of which sets the variances of reverse steps (Nichol & Dhariwal, 2021,
        Section 3.1).

    Raises:
      InputError: An argument of another kind, or an unknown prediction.

    Example:
      >>> def network(params, x, time, labels=None, dropout_keys=None):
      ...     return params * x
      >>> model = dj.DiffusionModel(dj.VP(), "eps", network)
      >>> x_t, point = jnp.ones((2, 4, 4, 1)), model.process.at(jnp.array([100.0, 900.0]))
      >>> prediction = model.predict(0.5, x_t, point)
      >>> prediction.x0.shape, float(prediction.eps.mean())
      ((2, 4, 4, 1), 0.5)
    """

    process: Process
    prediction: str | Preconditioning
    network: Network

    def __post_init__(self) -> None:
        """Raises for wrong arguments here, not at the first use."""
        check_process(self.process)
        such_as = "(params, x, time, labels, dropout_keys) -> output, such as as_functions(UNet(), image_shape).apply"
        expect("network", self.network, Callable, such_as)
        self.preconditioning  # noqa: B018

    @cached_property
    def preconditioning(self) -> Preconditioning:
        """The preconditioning of the network."""
        if isinstance(self.prediction, Preconditioning):
            return self.prediction
        return PREDICTIONS.choose(self.prediction).bind(process=self.process)()

    def predict(
        self,
        params: Any,
        x_t: Float[Array, " b *dims"],
        point: Point,
        labels: Int[Array, " b"] | Int[np.ndarray, " b"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Prediction:
        """Returns the network's prediction from x_t, in every form.

        Args:
          params: Parameters of the network.
          x_t: Noised images.
          point: Noise level of each image.
          labels: Class of each image.
          keys: Dropout keys, one per image; None turns dropout off.

        Raises:
          InputError: See `output`.
        """
        return self.interpret(x_t, point, self.output(params, x_t, point, labels, keys))

    def output(
        self,
        params: Any,
        x_t: Float[Array, " b *dims"],
        point: Point,
        labels: Int[Array, " b"] | Int[np.ndarray, " b"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Output:
        """Returns the network's output, split into the prediction and the variance fraction.

        If the output has twice the channels of x_t, the second half, in [-1, 1] with 0 before training, gives the
        fraction (output + 1) / 2. Arguments are those of `predict`.

        Raises:
          InputError: The output has neither the channels of x_t nor twice as many.
        """
        return self._apply(params, x_t, point, labels, keys)

    def _apply(self, params: Any, x_t: Array, point: Point, *given: Any) -> Output:
        """Returns the output of the network given labels, and dropout keys if there are any."""
        scaled, time = self.preconditioning.inputs(point, x_t)
        output = self.network(params, scaled, time, *given)
        if output.shape == x_t.shape:
            return Output(output, None)
        if output.shape != (*x_t.shape[:-1], 2 * x_t.shape[-1]):
            raise InputError(
                f"the network returns {output.shape} for images of {x_t.shape}; it must return their channels, or "
                "twice as many for learned variances"
            )
        mean, v = jnp.split(output, 2, axis=-1)
        return Output(mean, (v + 1) / 2)

    def interpret(self, x_t: Float[Array, " b *dims"], point: Point, output: Output) -> Prediction:
        """Returns the prediction that an output for x_t stands for, in every form."""
        x0, eps = self.preconditioning.predict(point, x_t, output.mean)
        return complete(point, x0, eps, output.fraction)

    def target(
        self,
        point: Point,
        x_t: Float[Array, " b *dims"],
        x0: Float[Array, " b *dims"],
        eps: Float[Array, " b *dims"],
    ) -> Float[Array, " b *dims"]:
        """Returns the network's target for x_t = signal x0 + std eps."""
        return self.preconditioning.target(point, x_t, x0, eps)

    def eps_error(self, point: Point) -> Float[Array, " b"]:
        """Returns the factor between errors: eps_hat - eps = factor * (output - target)."""
        return self.preconditioning.eps_error(point)

    def denoiser(
        self, params: Any, labels: Int[Array, " b"] | Int[np.ndarray, " b"] | None = None
    ) -> Denoise:
        """Returns (x_t, point) -> Prediction, without dropout; guidance and clipping wrap it.

        Args:
          params: Parameters of the network.
          labels: Class of each image.
        """

        def denoise(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
            return self.interpret(x_t, point, self._apply(params, x_t, point, labels))

        return denoise
