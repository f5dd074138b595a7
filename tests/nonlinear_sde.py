"""An SDE whose drift is not affine and whose marginals are known: dx = a tanh(a'x) dt + dw, |a| = 1 (Benes, 1981).

cosh(a'x) exp(-t / 2) is a martingale of Brownian motion, and its h-transform is this SDE. So if x_0 has the density
cosh(a'x) exp(-s / 2) N(x; 0, s I), x_t has it with s + t in place of s: half each of N(a (s + t), (s + t) I) and
N(-a (s + t), (s + t) I), as completing the square shows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.processes.dynamics import SDE, Prior

S = 0.5
END = 1.0


def direction(dims: int) -> np.ndarray:
    return np.full(dims, dims**-0.5)


def _along(x):
    """a'x, with an axis for the dimensions; x is (b, dims)."""
    return x.sum(-1, keepdims=True) * x.shape[-1] ** -0.5


def drift(x, t):
    return jnp.tanh(_along(x)) * jnp.asarray(direction(x.shape[-1]), x.dtype)[None]


def score(x, t):
    """The gradient of log cosh(a'x) - |x|^2 / (2 (s + t))."""
    return drift(x, t) - x / (S + t[:, None])


def log_density(x, t: float):
    x = np.asarray(x, np.float64)
    tau = S + t
    log_cosh = np.logaddexp(_along(x), -_along(x))[:, 0] - np.log(2)
    return (
        log_cosh - tau / 2 - (x**2).sum(-1) / (2 * tau) - x.shape[-1] / 2 * np.log(2 * np.pi * tau)
    )


def draw(rng: np.random.Generator, n: int, dims: int, t: float):
    """n exact draws of x_t."""
    tau = S + t
    mean = rng.choice([-tau, tau], size=(n, 1)) * direction(dims)
    return jnp.asarray(mean + np.sqrt(tau) * rng.normal(size=(n, dims)), jnp.float32)


def _log_prior(x):
    return (
        jnp.log(jnp.cosh(_along(x)[:, 0]))
        + jnp.asarray(-(S + END) / 2 - x.shape[-1] / 2 * np.log(2 * np.pi * (S + END)), x.dtype)
        - jnp.square(x).sum(-1) / (2 * (S + END))
    )


def _sample(keys, shape):
    def one(key):
        sign_key, key = jax.random.split(key)
        mean = jax.random.rademacher(sign_key, (), jnp.float32) * (S + END)
        return mean * shape[-1] ** -0.5 + jnp.sqrt(S + END) * jax.random.normal(key, shape)

    return jax.vmap(one)(keys)


BENES = SDE(drift, jnp.ones_like, 0.0, END, Prior(_sample, _log_prior))
