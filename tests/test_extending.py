"""The blocks of docs/extending.md run as they stand, and what they add does what the page says."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from slow import slow, slow_after

import diffusion_jax as dj
from diffusion_jax import data
from diffusion_jax.config import validate
from diffusion_jax.features import FEATURES
from diffusion_jax.losses import LOSSES, TIME_SAMPLERS, WEIGHTINGS
from diffusion_jax.main import main
from diffusion_jax.metrics import IMAGE_METRICS, METRICS, FeatureSet, make_measure
from diffusion_jax.models.networks import NETWORKS
from diffusion_jax.parallel.sharding import make_mesh
from diffusion_jax.processes import PROCESSES
from diffusion_jax.samplers import SAMPLERS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
MOST_LINES = 14
REGISTRIES = (
    *(LOSSES, TIME_SAMPLERS, WEIGHTINGS, METRICS, NETWORKS, PROCESSES, SAMPLERS),
    *(FEATURES, IMAGE_METRICS, dj.training.LOGGERS),
    data.SOURCES,
)
SHAPE = (8, 8, 1)
PROCESS = dj.DDPM(dj.make_schedule("cosine", 1000))
Namespace = dict[str, Any]


def _programs() -> tuple[dict[str, str], dict[str, str]]:
    """Returns the programs of the page by heading, and the registry line that stands below some of them.

    A second program under a heading has a number.
    """
    programs, entries, heading, name = {}, {}, "", ""
    found = r"^#+ ([^\n]*)$|^```python\n(.*?)^```$|^    (dj\.\S+\[[^\n]*)$"
    for title, program, entry in re.findall(found, PAGE.read_text(), re.M | re.S):
        heading = title or heading
        if program:
            name = heading if heading not in programs else f"{heading} 2"
            programs[name] = program
        elif entry:
            entries[name] = entry
    return programs, entries


PROGRAMS, ENTRIES = _programs()


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Takes out of the registries what a block has put there."""
    before = [set(registry) for registry in REGISTRIES]
    yield
    for registry, names in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - names:
            del registry[name]


def whole(heading: str) -> str:
    """Returns the program under a heading, and the registry line below it."""
    return "\n".join([PROGRAMS[heading], ENTRIES.get(heading, "")])


def run(heading: str) -> Namespace:
    """Runs the program under a heading, and the registry line below it, in a namespace of their own."""
    namespace: Namespace = {"__name__": "extending"}
    exec(compile(whole(heading), f"{PAGE.name}: {heading}", "exec"), namespace)
    return namespace


def linear(params: Any, x: Any, t: Any, labels: Any = None, dropout_keys: Any = None) -> Any:
    """A network that is right for standard normal data where the process keeps the variance: eps_hat = std x_t."""
    del t, labels, dropout_keys
    return params * x


def noise(*shape: int, seed: int = 0) -> Any:
    return jax.random.normal(jax.random.key(seed), shape)


def check_config(namespace: Namespace) -> None:
    config = namespace["get_config"]()
    validate(config)
    assert config.loss.weighting == "half"


def check_data(namespace: Namespace) -> None:
    assert namespace["batch"]["image"].shape == (16, *SHAPE)
    split = data.load("stripes", "test")
    assert split.class_names == ("across", "down") and split.class_counts == (8, 8)
    images = split.read(np.array([0, 1]))["image"].astype(int)
    # Rows that are alike across, columns that are alike down.
    assert not np.diff(images[0], axis=1).any() and not np.diff(images[1], axis=0).any()


def check_network(namespace: Namespace) -> None:
    """It can be trained, is differentiable forwards and backwards, and depends on the time."""
    network = namespace["network"]
    params, x, t = network.init(jax.random.key(0)), noise(2, *SHAPE), jnp.array([3.0, 700.0])
    out = network.apply(params, x, t)
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert (network.apply(params, x, t + 10) != out).any()

    def of_x(x: Any) -> Any:
        return network.apply(params, jnp.asarray(x), t)

    check_grads(of_x, (x,), 1, ("fwd", "rev"), rtol=0.05, atol=0.05)
    objective = dj.loss_function("simple", dj.DiffusionModel(PROCESS, "eps", network.apply))
    optimizer = dj.training.make_optimizer(1e-2, 0)
    step = jax.jit(dj.training.make_train_step(objective, optimizer, jax.random.key(0)))
    state, losses = dj.training.create_state(jax.random.key(1), network, optimizer), []
    for _ in range(40):
        state, metrics = step(state, {"image": jnp.zeros((32, *SHAPE))})
        losses.append(float(metrics.loss))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def check_training(namespace: Namespace) -> None:
    assert namespace["images"].shape == (4, *SHAPE) and np.isfinite(namespace["images"]).all()
    assert namespace["state"].step == 2 and np.isfinite(namespace["metrics"].loss)


def check_process(namespace: Namespace) -> None:
    """Its coefficients and its inverse are those of its signal and std, by differences and there and back."""
    process = namespace["Cosine"]() if "Cosine" in namespace else namespace["process"]
    time, step = np.linspace(50, 950, 19), 1e-3
    here, before, after = (process.at(t) for t in (time, time - step, time + step))
    slope = (after.log_signal - before.log_signal) / (2 * step)
    growth = (after.std**2 - before.std**2) / (2 * step)
    rates = process.rates(time)
    np.testing.assert_allclose(rates.drift, slope, rtol=1e-4)
    np.testing.assert_allclose(rates.diffusion2, growth - 2 * slope * here.std**2, rtol=1e-4)
    np.testing.assert_allclose(process.times_of(here.logsnr), time, rtol=1e-5)
    point = process.at(jnp.asarray(time, jnp.float32))
    np.testing.assert_allclose(point.std, here.std, rtol=1e-5)
    if (
        "Cosine" in namespace
    ):  # Its x_t of standard normal data is standard normal, so E[v | x_t] = 0.
        assert PROCESSES["cosine"].continuous
        denoise = dj.DiffusionModel(process, "v", lambda params, x, *_: 0 * x).denoiser(None)
        keys, sampler = dj.image_keys(0, np.arange(64)), dj.ddim(dj.make_grid(process, 100))
        # The steps shrink it by 1%; five standard deviations of that of 4,096 numbers are 0.055.
        assert abs(float(dj.sample_loop(denoise, sampler, keys, SHAPE).images.std()) - 0.99) < 0.06


def check_loss(namespace: Namespace) -> None:
    """With eps_hat = 0 it is the mean of |eps|, (2 / pi)^(1/2)."""
    objective = dj.loss_function("absolute", dj.DiffusionModel(PROCESS, "eps", linear))
    aux, x0 = objective.init(jnp.float32(0)), jnp.zeros((64, *SHAPE))
    draws = objective.draw(aux, jax.random.key(0), x0.shape)
    losses = objective.loss(jnp.float32(0), aux, x0, None, draws, None)
    np.testing.assert_allclose(losses, np.abs(draws.eps).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(losses.mean(), np.sqrt(2 / np.pi), atol=0.03)


def check_weighting(namespace: Namespace) -> None:
    """It is gamma / (SNR + gamma), below min_snr's and at most by half."""
    point = PROCESS.at(jnp.array([1, 100, 500, 998]))
    weight = WEIGHTINGS["soft_min_snr"](gamma=3.0)(point)
    limit = WEIGHTINGS["min_snr"](gamma=3.0)(point)
    assert ((weight < limit * (1 + 1e-5)) & (weight > limit / 2 * (1 - 1e-5))).all()
    assert WEIGHTINGS["soft_min_snr"].options["soft_gamma"].default == 5.0


@pytest.mark.parametrize("num_images", [1, 8, 9])
def test_the_antithetic_times_are_even_and_mirrored(num_images: int) -> None:
    run("Time samplers")
    times = TIME_SAMPLERS["antithetic"](u_min=0.1)
    keys = jax.random.split(jax.random.key(0), 500)
    u, weight = jax.vmap(lambda key: times.draw((), key, num_images))(keys)
    assert u.shape == (500, num_images) and (weight == 1).all() and times.u_min == 0.1
    assert ((u >= 0) & (u < 1)).all()
    half = (num_images + 1) // 2
    np.testing.assert_allclose(u[:, half:], 1 - u[:, : num_images - half], atol=1e-6)
    assert abs(float(u.mean()) - 0.5) < 0.05


def check_times(namespace: Namespace) -> None:
    assert "antithetic" in TIME_SAMPLERS


def check_sampler(namespace: Namespace) -> None:
    """With the factor 1 it is DDIM; without noise all images are those of the data's mean."""
    denoise = dj.DiffusionModel(PROCESS, "eps", linear).denoiser(jnp.float32(0.5))
    grid, keys = dj.make_grid(PROCESS, 7), dj.image_keys(0, np.arange(3))
    drawn = {
        scale: dj.sample_loop(denoise, SAMPLERS["scaled"](grid, eps_scale=scale), keys, SHAPE)
        for scale in (1.0, 0.9)
    }
    known = dj.sample_loop(denoise, dj.ddim(grid), keys, SHAPE)
    np.testing.assert_allclose(drawn[1.0].images, known.images, rtol=2e-3, atol=1e-4)
    assert (drawn[0.9].images != drawn[1.0].images).all()
    assert SAMPLERS["scaled"].options["eps_scale"].traced


def check_metric(namespace: Namespace) -> None:
    """Of a denoiser that says x_t / signal the squared error is (std / signal)^2."""
    model = dj.DiffusionModel(PROCESS, "eps", linear)
    metric = METRICS["denoising"].bind(process=PROCESS, denoiser=model.denoiser, seed=0)()
    images = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)
    measure = make_measure(
        *(metric, data.from_arrays(images), make_mesh(1)),
        conditional=False,
        num_images=40,
        batch_size=16,
    )
    sigma = float(PROCESS.at(jnp.array([100])).sigma[0])
    np.testing.assert_allclose(measure(jnp.float32(0)).total.value, sigma**2, rtol=0.1)


COMMAND = """
def get_config():
    from diffusion_jax.config import default_config, select
    config = default_config()
    for name, value in CHOICES.items():
        select(config, name, value)
    config.sampler.eps_scale = 0.9
    config.process.num_timesteps = 10
    config.train.num_steps = 2
    config.train.batch_size = 16
    config.train.sample_images = 2
    config.mesh.data = 1
    return config
"""
CHOICES = {
    "data.name": "stripes",
    "process.name": "cosine",
    "loss.name": "absolute",
    "loss.times": "antithetic",
    "sampler.name": "scaled",
}
OTHERS = ("Data", "Processes", "Losses", "Time samplers", "Samplers", "Metrics")
OTHERS = (*OTHERS, "Metrics of images", "Features")


@pytest.mark.parametrize(
    ("heading", "name"),
    [slow("Flax Linen", "conv"), slow("Flax NNX", "nnx"), slow("Equinox", "equinox")],
)
def test_all_of_them_together_are_choices_of_the_command(
    heading: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, workdir = tmp_path / "mine.py", tmp_path / "run"
    choices = f"CHOICES = {CHOICES | {'model.name': name}}"
    file.write_text("\n".join([*map(whole, (*OTHERS, heading)), choices, COMMAND]))

    def command(mode: str, *assignments: str) -> dict[str, Any]:
        overrides = [f"--config.{assignment}" for assignment in assignments]
        flags = [f"--config={file}", f"--workdir={workdir}", f"--mode={mode}", *overrides]
        assert main(flags) == 0, capsys.readouterr().err
        return json.loads((workdir / "results" / f"{mode}.json").read_text())

    command("train")
    assert command("train", "train.num_steps=4")["step"] == 4  # From the checkpoint.
    assert command("sample", "sample.num_images=2")["sampler"]["name"] == "scaled"
    evaluated = command("evaluate", "eval.metrics=denoising")["denoising"]
    assert evaluated["num_images"] == 16 and evaluated["value"] > 0
    fields = ("eval.metrics=shift", "eval.features=thumbnail", "eval.num_images=4")
    assert command("evaluate", *fields)["shift_thumbnail"]["value"] > 0


def check_image_metric(namespace: Namespace) -> None:
    del namespace
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    metric = IMAGE_METRICS["shift"].from_fields({}, seed=0)
    found = metric.measure(FeatureSet("x", rows + 3), FeatureSet("y", rows)).record()
    assert found == {"value": pytest.approx(np.sqrt(18)), "stderr": None}


def check_features(namespace: Namespace) -> None:
    del namespace
    images = np.full((3, 8, 8, 3), 51, np.uint8)
    found = dj.metrics.extract(FEATURES["thumbnail"](), data.from_arrays(images))
    np.testing.assert_allclose(found, np.full((3, 16), 0.2), rtol=1e-6)


def check_logger(namespace: Namespace) -> None:
    logger = dj.training.LOGGERS["printed"].from_fields(
        {}, workdir=Path("r"), start=3, settings={"seed": 7}
    )
    with contextlib.redirect_stdout(io.StringIO()) as said:
        logger.scalars({"loss": 0.5}, 4)
        logger.close()
    assert "{'loss': 0.5}" in said.getvalue()


CHECKS: dict[str, Callable[[Namespace], None]] = {
    "A config file with your own components": check_config,
    "Data": check_data,
    "Flax Linen": check_network,
    "Flax NNX": check_network,
    "Equinox": check_network,
    "Training a network": check_training,
    "Processes": check_process,
    "Processes 2": check_process,
    "Losses": check_loss,
    "Weightings": check_weighting,
    "Time samplers": check_times,
    "Samplers": check_sampler,
    "Metrics": check_metric,
    "Metrics of images": check_image_metric,
    "Features": check_features,
    "Loggers": check_logger,
}


@pytest.mark.parametrize("heading", slow_after(4, CHECKS))
def test_a_block_runs_and_does_what_the_page_says(heading: str) -> None:
    CHECKS[heading](run(heading))


@pytest.mark.parametrize("heading", PROGRAMS)
def test_a_block_is_under_fifteen_lines_and_checked(heading: str) -> None:
    assert heading in CHECKS
    lines = [line for line in PROGRAMS[heading].splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES
