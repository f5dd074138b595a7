"""The golden values: those with a closed form by mpmath, the others as this library computes them; writes the file.

python tests/golden/golden_values.py   # Writes values.json anew: only where a change is meant to move results.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import diffusion_jax as dj
from diffusion_jax.likelihood import dequantized_likelihood

FILE = Path(__file__).with_name("values.json")
TIMES = (0, 1, 9, 99, 499, 900, 999)  # Of 1,000 steps; continuous time u is (t + 1) / 1000.
SHAPE, CLASSES, BATCH = (8, 8, 1), 3, 4
MEAN, STD = "0.3", "0.4"  # Of normal data, whose likelihood is known.

PROCESSES: dict[str, Callable[[], Any]] = {
    "linear": lambda: dj.DDPM(dj.make_schedule("linear", 1000)),
    "cosine": lambda: dj.DDPM(dj.make_schedule("cosine", 1000)),
    "vp": dj.VP,
    "subvp": dj.processes.SubVP,
    "ve": dj.VE,
}


def native_time(name: str, u: float) -> float:
    """A process's own time (docs/architecture.md): t, 999 u, or log sigma."""
    if name in ("linear", "cosine"):
        return 1000 * u - 1
    return float(mpmath.log(0.02) + u * mpmath.log(5000)) if name == "ve" else 999 * u


def derived_schedules() -> dict[str, list[list[str]]]:
    """Signal and standard deviation of each process at `TIMES`, in 40 digits from the papers' formulas."""
    with mpmath.workdps(40):
        betas = {
            "linear": [
                mpmath.mpf("1e-4") + (mpmath.mpf("0.02") - mpmath.mpf("1e-4")) * t / 999
                for t in range(1000)
            ],
            "cosine": [_cosine_beta(t) for t in range(1000)],
        }
        values: dict[str, list[tuple[Any, Any]]] = {}
        for name, all_betas in betas.items():
            bars = [mpmath.fprod(1 - beta for beta in all_betas[: t + 1]) for t in TIMES]
            values[name] = [(mpmath.sqrt(bar), mpmath.sqrt(1 - bar)) for bar in bars]
        u = [mpmath.mpf(t + 1) / 1000 for t in TIMES]
        # Song et al. (2021), Eqs. 29 and 33: beta from 0.1 to 20, sigma from 0.01 to 50 of pixels in [0, 1].
        log_bars = [-(mpmath.mpf("19.9") * v**2 / 2 + v / 10) for v in u]
        values["vp"] = [(mpmath.exp(b / 2), mpmath.sqrt(-mpmath.expm1(b))) for b in log_bars]
        values["subvp"] = [(mpmath.exp(b / 2), -mpmath.expm1(b)) for b in log_bars]
        values["ve"] = [(mpmath.mpf(1), mpmath.mpf("0.02") * mpmath.mpf(5000) ** v) for v in u]
        return {n: [[mpmath.nstr(x, 20) for x in pair] for pair in p] for n, p in values.items()}


def _cosine_beta(t: int) -> Any:
    """Nichol & Dhariwal (2021), Eq. 17, with their cap."""
    s = mpmath.mpf("0.008")

    def f(k: int) -> Any:
        return mpmath.cos((mpmath.mpf(k) / 1000 + s) / (1 + s) * mpmath.pi / 2) ** 2

    return min(1 - f(t + 1) / f(t), mpmath.mpf("0.999"))


@cache
def network() -> dj.models.Model:
    """A U-Net with attention and classes."""
    unet = dj.UNet(
        channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_classes=CLASSES,
    )
    return dj.as_functions(unet, SHAPE)


def model(name: str) -> dj.DiffusionModel:
    """The U-Net on a process."""
    return dj.DiffusionModel(PROCESSES[name](), "v", network().apply)


def parameters() -> Any:
    """Parameters of the initialization, moved by sines, since the last layer of a new network is zero."""
    params = network().init(jax.random.key(0))
    move = lambda p: p + 0.02 * jnp.sin(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape)  # noqa: E731
    return jax.tree.map(move, params)


def images(n: int) -> np.ndarray:
    """Pictures of 256 levels in closed form."""
    k, i, j = np.ogrid[:n, :8, :8]
    return ((37 * k + 11 * i * j + 5 * i + 3 * j) % 256).astype(np.uint8)[..., None]


def train_step() -> dict[str, float]:
    """Loss and norm of the gradient of one step from `parameters`."""
    optimizer = dj.training.make_optimizer(learning_rate=1e-3, warmup_steps=1)
    state = dj.training.create_state(jax.random.key(0), network(), optimizer)
    state = dataclasses.replace(state, params=parameters())
    step = dj.training.make_train_step(
        dj.loss_function("simple", model("cosine")), optimizer, jax.random.key(1), conditional=True
    )
    batch = {"image": images(BATCH), "label": np.arange(BATCH) % CLASSES}
    _, metrics = jax.jit(step)(state, batch)
    return {"loss": float(metrics.loss), "grad_norm": float(metrics.grad_norm)}


def samples() -> np.ndarray:
    """Ten images, in ten steps of DDIM."""
    process, keys = PROCESSES["cosine"](), dj.image_keys(0, np.arange(10))

    @jax.jit
    def draw(params: Any) -> jax.Array:
        denoise = dj.clip_denoised(model("cosine").denoiser(params, jnp.arange(10) % CLASSES))
        sampler = dj.ddim(dj.make_grid(process, 10, "trailing"))
        return dj.data.to_uint8(dj.sample_loop(denoise, sampler, keys, SHAPE).images)

    return np.asarray(draw(parameters()))


def ode_likelihood() -> float:
    """log p per dimension, in nats, of one image by the flow of the U-Net."""
    grid = dj.make_grid(PROCESSES["vp"](), 2, u_min=1e-3)
    keys = dj.image_keys(0, np.arange(1))
    denoise = model("vp").denoiser(parameters(), jnp.zeros(1, jnp.int32))
    score = lambda x: dequantized_likelihood(denoise, grid, PROCESSES["vp"](), x, keys)  # noqa: E731
    result = jax.jit(score)(images(1))
    assert result.finished.all()
    return float(result.log_likelihood[0]) / images(1).size


def derived_normal_likelihood() -> str:
    """log p per dimension of `images(1)` by the flow of normal data from u = 1e-3 to a prior N(0, 1) at u = 1.

    The flow keeps quantiles, so it is linear: x goes to z with the ratio of the widths at both ends.
    """
    with mpmath.workdps(40):
        log_bars = [
            -(mpmath.mpf("19.9") * u**2 / 2 + u / 10) for u in (mpmath.mpf("1e-3"), mpmath.mpf(1))
        ]
        (start, end) = [
            (
                mpmath.exp(b / 2) * mpmath.mpf(MEAN),
                mpmath.sqrt(mpmath.mpf(STD) ** 2 * mpmath.exp(b) - mpmath.expm1(b)),
            )
            for b in log_bars
        ]
        ratio = end[1] / start[1]
        z = [
            end[0] + ratio * (mpmath.mpf(int(level)) * 2 / 255 - 1 - start[0])
            for level in images(1).ravel()
        ]
        squares = mpmath.fsum(v**2 for v in z) / len(z)
        return mpmath.nstr(mpmath.log(ratio) - (squares + mpmath.log(2 * mpmath.pi)) / 2, 20)


def main() -> None:
    """Writes the file."""
    drawn = samples()
    content = {
        "derived": {
            "schedules": derived_schedules(),
            "normal_likelihood": derived_normal_likelihood(),
        },
        "pinned": {
            "made_with": f"jax {jax.__version__}, CPU",
            "train_step": train_step(),
            "ode_likelihood": ode_likelihood(),
            "samples": drawn.reshape(len(drawn), -1).tolist(),
        },
    }
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
