"""Every field of process, loss, sampler, optimizer and model reaches the computation that it names.

What a config builds is compared with the same made by hand from the library's functions and plain arguments.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from slow import slow, slow_but

from diffusion_jax.config import FIELDS, default_config, group_of, override
from diffusion_jax.data import to_uint8
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build, sampling
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.keys import indexed
from diffusion_jax.losses import (
    LOSSES,
    NoiseDraw,
    Objective,
    TimeSampler,
    TrainingLoss,
    Weighting,
    hybrid,
    simple,
    uniform,
    vlb,
)
from diffusion_jax.losses.sliced import sliced
from diffusion_jax.losses.time_samplers import importance
from diffusion_jax.losses.weightings import min_snr, p2, sigmoid
from diffusion_jax.models import networks
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import classifier_free, clip_denoised, dynamic_threshold
from diffusion_jax.models.inputs import ve_inputs
from diffusion_jax.models.networks import MLP, Model, UNet, as_functions
from diffusion_jax.models.preconditioning import Preconditioning, edm, eps
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.process import Grid, Process
from diffusion_jax.processes.registry import PROCESSES, ProcessKind
from diffusion_jax.processes.schedules import make_schedule, zero_terminal_snr
from diffusion_jax.processes.sde import VE, VP, SubVP
from diffusion_jax.samplers import (
    SAMPLERS,
    Sampler,
    SampleResult,
    UpdateRule,
    ancestral,
    ddim,
    heun,
    image_keys,
    langevin,
    ode_adaptive,
    predictor_corrector,
    sample_loop,
    unipc,
)
from diffusion_jax.samplers.loop import first_noise
from diffusion_jax.training.optimizer import (
    Decay,
    ema_decay,
    exact_ema_decay,
    make_optimizer,
    power_decay,
    share_of,
)

SHAPE = (2, 2, 1)
T = 40
MODEL = as_functions(MLP(channels=8, num_res_blocks=1), SHAPE)
BASE = {"model.name": "mlp", "model.channels": 8, "model.num_res_blocks": 1}
BASE |= {"process.num_timesteps": T}


def params_of_a_trained_network(model: Model) -> Any:
    """Returns parameters none of which is zero, as the last layer's are at first."""
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draws = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [leaf + 0.3 * z for leaf, z in zip(leaves, draws, strict=True)])


PARAMS = params_of_a_trained_network(MODEL)


# ---- what a config decides, seen from outside --------------------------------------------------------


KEYS = indexed(jax.random.key(5), jnp.arange(8))


def losses(objective: Objective) -> jax.Array:
    x0, eps = jax.random.normal(jax.random.key(2), (2, 8, *SHAPE))
    return objective.loss(
        PARAMS, (), x0, None, NoiseDraw((jnp.arange(8) + 0.5) / 8, eps, jnp.ones(8), KEYS), None
    )


def draws(objective: Objective) -> Any:
    drawn = objective.draw(objective.init(None), jax.random.key(4), (8, *SHAPE))
    assert drawn.keys is not None
    return drawn._replace(keys=jax.random.key_data(drawn.keys))  # Keys cannot be compared.


def updates(optimizer: optax.GradientTransformation) -> list[Any]:
    """Returns the changes by three gradients, the first of norm 5: above the usual limit; early and late."""
    changes = []
    for count in (0, 400_000):
        state = optax.tree.set(optimizer.init(jnp.zeros(2)), count=jnp.asarray(count))
        for scale in (1.0, 0.1, 0.01):
            change, state = optimizer.update(scale * jnp.array([3.0, 4.0]), state, jnp.zeros(2))
            changes.append(change)
    return changes


def draw(exp: Experiment) -> SampleResult:
    """Draws four images with seed 3, of classes 0 and 1 in turn if there are classes."""
    labels = jnp.arange(4) % 2 if exp.conditional else None
    numbers = sampling.traced_options(exp)._replace(seed=jnp.uint32(3))
    return sampling.make_draw(exp)(PARAMS, numbers, jnp.arange(4), labels)


def decays(averages: Mapping[str, Decay]) -> dict[str, list[jax.Array]]:
    return {
        name: [share_of(decay, jnp.asarray(step)) for step in (10, 10**6)]
        for name, decay in averages.items()
    }


def built(config: ConfigDict, parts: Iterable[str]) -> dict[str, Any]:
    """Returns losses, draws, images, changes of the optimizer or decays, early and late, of a config."""
    exp = build.build(config, SHAPE, 0)
    made: dict[str, Callable[[], Any]] = {
        "losses": lambda: losses(exp.objective()),
        "draws": lambda: draws(exp.objective()),
        "images": lambda: draw(exp).images,
        "updates": lambda: updates(build.make_optimizer_of(config)),
        "decays": lambda: decays(build.tracked_of(config).make()),
    }
    return {part: made[part]() for part in parts}


def process_by_hand(
    *,
    schedule: str = "linear",
    num_timesteps: int = T,
    beta_start: float | None = None,
    beta_end: float | None = None,
    make_process: Callable[[Any], Process] = DDPM,
) -> Process:
    return make_process(make_schedule(schedule, num_timesteps, beta_start, beta_end))


def objective_by_hand(
    *,
    prediction: str | Preconditioning = "eps",
    make_objective: Callable[..., Objective] = simple,
    weighting: Weighting | None = None,
    times: TimeSampler | None = None,
    **process: Any,
) -> Objective:
    return make_objective(
        DiffusionModel(process_by_hand(**process), prediction, MODEL.apply),
        weighting=weighting,
        times=times or uniform(),
    )


def images_by_hand(
    *,
    prediction: str | Preconditioning = "eps",
    make_sampler: Callable[..., Sampler] = ancestral,
    num_steps: int | None = None,
    spacing: Any = "uniform",
    u_min: float | None = None,
    variance: str = "fixed_large",
    temperature: float = 1.0,
    limit: Callable[[Denoise], Denoise] = clip_denoised,
    **process_arguments: Any,
) -> jax.Array:
    process = process_by_hand(**process_arguments)
    denoise = DiffusionModel(process, prediction, MODEL.apply).denoiser(PARAMS)
    sampler = make_sampler(make_grid(process, num_steps, spacing, u_min), variance=variance)
    keys = image_keys(3, jnp.arange(4))
    x_init = temperature * (sampler.grid.prior_std * first_noise(keys, SHAPE))
    drawn = sample_loop(limit(denoise), sampler, keys, SHAPE, x_init=x_init)
    return to_uint8(drawn.images)


def updates_by_hand(
    *,
    learning_rate: float = 2e-4,
    warmup_steps: int = 5000,
    grad_clip: float = 1.0,
    rate_decay: str = "constant",
    total_steps: int = 800_000,
) -> list[Any]:
    return updates(
        make_optimizer(
            *(learning_rate, warmup_steps, grad_clip), decay=rate_decay, num_steps=total_steps
        )
    )


def decays_by_hand(
    *,
    decay: float = 0.9999,
    warmup: bool = True,
    further: Mapping[str, Decay] = MappingProxyType({}),
) -> dict[str, list[jax.Array]]:
    return decays({"default": ema_decay(decay, warmup=warmup), **further})


OF_PROCESS = {"schedule", "num_timesteps", "beta_start", "beta_end", "make_process", "prediction"}
OF_OBJECTIVE = OF_PROCESS | {"make_objective", "weighting", "times"}
OF_SAMPLER = {"make_sampler", "num_steps", "spacing", "u_min", "variance", "temperature", "limit"}
OF_OPTIMIZER = {"learning_rate", "warmup_steps", "grad_clip", "rate_decay", "total_steps"}
# What is seen -> (how it is made, of which arguments). Most cases leave most of it as it is.
PARTS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "losses": (functools.cache(lambda **of: losses(objective_by_hand(**of))), OF_OBJECTIVE),
    "draws": (functools.cache(lambda **of: draws(objective_by_hand(**of))), OF_OBJECTIVE),
    "images": (functools.cache(images_by_hand), OF_PROCESS | OF_SAMPLER),
    "updates": (functools.cache(updates_by_hand), OF_OPTIMIZER),
    "decays": (decays_by_hand, {"decay", "warmup", "further"}),
}


def by_hand(**arguments: Any) -> dict[str, Any]:
    """Returns all parts of `built` without a config; the defaults are those of the config."""
    assert arguments.keys() <= set[str]().union(*(names for _, names in PARTS.values()))
    return {
        part: make(**{name: value for name, value in arguments.items() if name in names})
        for part, (make, names) in PARTS.items()
    }


# Entries that the registries do not have: a choice among one is no choice.


def fewer(schedule: Any) -> Process:
    """The process of another family."""
    return DDPM(make_schedule("cosine", schedule.num_timesteps - 1))


def sde(make: Callable[..., Process], **options: Any) -> Callable[[Any], Process]:
    """A process in continuous time, which has no schedule but as many steps."""
    return lambda schedule: make(num_timesteps=schedule.num_timesteps, **options)


def doubled(model: DiffusionModel, *, weighting: Any = None, times: Any = None) -> Objective:
    """Twice the simple loss."""
    objective = simple(model, weighting=weighting, times=times)
    return objective._replace(loss=lambda *inputs: 2 * objective.loss(*inputs))


def stubborn(
    grid: Grid,
    *,
    variance: Annotated[str, SAMPLERS["ancestral"].options["variance"]] = "fixed_large",
) -> Sampler:
    """An update rule with another variance than asked for."""
    return ancestral(grid, variance="fixed_small")


def ddim_with(eta: float) -> Callable[..., Sampler]:
    """DDIM, for which variance is no argument."""
    return lambda grid, variance: ddim(grid, eta=eta)


def unipc_of(order: int) -> Callable[..., Sampler]:
    """UniPC, for which variance is no argument."""
    return lambda grid, variance: unipc(grid, order=order)


def heun_with(**options: Any) -> Callable[..., Sampler]:
    """Heun's method with churn, which takes the process instead of a variance."""
    process = DDPM(make_schedule("linear", T))
    return lambda grid, variance: heun(grid, process, **{"churn": 9.0} | options)


def pc_with(**options: Any) -> Callable[..., Sampler]:
    """Predictor and corrector, which take the process instead of a variance."""
    process = DDPM(make_schedule("linear", T))
    return lambda grid, variance: predictor_corrector(grid, process, **options)


def langevin_of_ve(**options: Any) -> dict[str, Any]:
    """Annealed Langevin dynamics, which does not fit the chain."""
    return {
        "make_process": sde(VE),
        "make_sampler": lambda grid, variance: langevin(grid, **options),
    }


def adaptive_with(**options: Any) -> Callable[..., Sampler]:
    """The adaptive solution, whose grid has two steps unless told otherwise."""
    process = DDPM(make_schedule("linear", T))
    return lambda grid, variance: ode_adaptive(make_grid(process, 2), process, **options)


def other_chain(
    *,
    schedule: Annotated[str, PROCESSES["ddpm"].options["schedule"]] = "linear",
    num_timesteps: Annotated[int, PROCESSES["ddpm"].options["num_timesteps"]] = 1000,
) -> Process:
    return fewer(make_schedule(schedule, num_timesteps))


@pytest.fixture(autouse=True)
def other_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROCESSES, "other", ProcessKind(other_chain, "other"))
    monkeypatch.setitem(LOSSES, "other", TrainingLoss(doubled, "other"))
    monkeypatch.setitem(SAMPLERS, "other", UpdateRule(stubborn, "other"))


# Field -> (text on the command line, the same as an argument, what changes: this and nothing else).
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "process.name": ("other", {"make_process": fewer}, {"losses", "images"}),
    "process.schedule": ("sigmoid", {"schedule": "sigmoid"}, {"losses", "images"}),
    "process.num_timesteps": ("30", {"num_timesteps": 30}, {"losses", "images"}),
    "process.beta_start": ("0.1", {"beta_start": 0.1}, {"losses", "images"}),
    "process.beta_end": ("0.1", {"beta_end": 0.1}, {"losses", "images"}),
    "process.beta_min": ("1", {"make_process": sde(VP, beta_min=1.0)}, {"losses", "images"}),
    "process.beta_max": ("3", {"make_process": sde(VP, beta_max=3.0)}, {"losses", "images"}),
    "process.sigma_min": ("0.5", {"make_process": sde(VE, sigma_min=0.5)}, {"losses", "images"}),
    "process.sigma_max": ("9", {"make_process": sde(VE, sigma_max=9.0)}, {"losses", "images"}),
    "process.prediction": ("v", {"prediction": "v"}, {"losses", "images"}),
    "process.zero_snr": (
        "true",
        {"make_process": lambda s: DDPM(zero_terminal_snr(s)), "prediction": "v"},
        {"losses", "images"},
    ),
    "process.inputs": (
        "ve",
        {"prediction": dataclasses.replace(eps(), inputs=ve_inputs)},
        {"losses", "images"},
    ),
    "process.sigma_data": ("0.3", {"prediction": edm(sigma_data=0.3)}, {"losses", "images"}),
    "process.variance": ("fixed_small", {"variance": "fixed_small"}, {"images"}),
    "loss.name": ("other", {"make_objective": doubled}, {"losses"}),
    "loss.num_probes": (
        "3",
        {"make_objective": functools.partial(sliced, num_probes=3)},
        {"losses"},
    ),
    "loss.times": ("importance", {"times": importance(num_bins=T)}, {"draws"}),
    "loss.weighting": ("min_snr", {"weighting": min_snr()}, {"losses"}),
    "loss.min_snr_gamma": ("2", {"weighting": min_snr(gamma=2.0)}, {"losses"}),
    "loss.p2_k": ("3", {"weighting": p2(k=3.0)}, {"losses"}),
    "loss.p2_gamma": ("0.5", {"weighting": p2(gamma=0.5)}, {"losses"}),
    "loss.sigmoid_bias": ("-1", {"weighting": sigmoid(bias=-1.0)}, {"losses"}),
    "loss.u_min": ("0.5", {"make_process": sde(VP), "times": uniform(u_min=0.5)}, {"losses"}),
    "optimizer.learning_rate": ("0.5", {"learning_rate": 0.5}, {"updates"}),
    "optimizer.warmup_steps": ("2", {"warmup_steps": 2}, {"updates"}),
    "optimizer.decay": ("linear", {"rate_decay": "linear"}, {"updates"}),
    "optimizer.grad_clip": ("0", {"grad_clip": 0.0}, {"updates"}),
    "optimizer.ema_decay": ("0.9", {"decay": 0.9}, {"decays"}),
    "optimizer.ema_warmup": ("false", {"warmup": False}, {"decays"}),
    "optimizer.ema_decays": (
        "0.9,0.9999,0.99",  # The second is the usual one.
        {"further": {f"decay_{d}": exact_ema_decay(d) for d in (0.9, 0.99)}},
        {"decays"},
    ),
    "optimizer.ema_lengths": (
        "0.05,0.1",
        {"further": {f"length_{x}": power_decay(x) for x in (0.05, 0.1)}},
        {"decays"},
    ),
    "sampler.name": ("other", {"make_sampler": stubborn}, {"images"}),
    "sampler.num_steps": ("9", {"num_steps": 9}, {"images"}),
    "sampler.spacing": ("0,7,39", {"spacing": (0, 7, 39)}, {"images"}),
    "sampler.u_min": ("0.3", {"make_process": sde(VP), "u_min": 0.3}, {"images"}),
    "sampler.variance": ("fixed_small", {"variance": "fixed_small"}, {"images"}),
    "sampler.eta": ("0.5", {"make_sampler": ddim_with(0.5)}, {"images"}),
    "sampler.temperature": ("0.5", {"temperature": 0.5}, {"images"}),
    "sampler.order": (
        "2",
        {"make_sampler": unipc_of(2), "prediction": "x0"},
        {"images"},
    ),
    "sampler.churn": ("20", {"make_sampler": heun_with(churn=20.0)}, {"images"}),
    "sampler.churn_min": ("1", {"make_sampler": heun_with(churn_min=1.0)}, {"images"}),
    "sampler.churn_max": ("1", {"make_sampler": heun_with(churn_max=1.0)}, {"images"}),
    "sampler.churn_noise": ("1.1", {"make_sampler": heun_with(churn_noise=1.1)}, {"images"}),
    "sampler.predictor": (
        "ancestral",
        {"make_sampler": pc_with(predictor="ancestral")},
        {"images"},
    ),
    "sampler.corrector_steps": ("2", {"make_sampler": pc_with(corrector_steps=2)}, {"images"}),
    "sampler.snr": ("0.3", {"make_sampler": pc_with(snr=0.3)}, {"images"}),
    "sampler.langevin_steps": ("2", langevin_of_ve(num_moves=2), {"images"}),
    "sampler.langevin_step_size": ("0.1", langevin_of_ve(step_size=0.1), {"images"}),
    "sampler.rtol": ("0.1", {"make_sampler": adaptive_with(rtol=0.1)}, {"images"}),
    "sampler.atol": ("0.1", {"make_sampler": adaptive_with(atol=0.1)}, {"images"}),
    "sampler.max_steps": ("2", {"make_sampler": adaptive_with(max_steps=2)}, {"images"}),
    "sampler.clip": ("false", {"limit": lambda denoise: denoise}, {"images"}),
    "sampler.clip_keeps": (
        "eps",
        {
            "make_sampler": ddim_with(0.0),
            "limit": lambda denoise: clip_denoised(denoise, keep_eps=True),
        },
        {"images"},
    ),
    "sampler.dynamic_threshold": (
        "0.6",
        {"limit": lambda denoise: dynamic_threshold(denoise, 0.6)},
        {"images"},
    ),
}

OF_VP = ({"process.name": "vp"}, {"make_process": sde(VP)})
OF_VE = ({"process.name": "ve"}, {"make_process": sde(VE)})
# Field -> (the fields without which it has no use, the same as an argument).
NEEDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("process.beta_min", "process.beta_max", "loss.u_min", "sampler.u_min"), OF_VP),
    **dict.fromkeys(("process.sigma_min", "process.sigma_max"), OF_VE),
    "process.sigma_data": ({"process.prediction": "edm"}, {"prediction": "edm"}),
    "process.zero_snr": ({"process.prediction": "v"}, {"prediction": "v"}),
    "loss.num_probes": ({"loss.name": "sliced"}, {"make_objective": sliced}),
    "loss.min_snr_gamma": ({"loss.weighting": "min_snr"}, {"weighting": min_snr()}),
    **dict.fromkeys(
        ("loss.p2_k", "loss.p2_gamma"), ({"loss.weighting": "p2"}, {"weighting": p2()})
    ),
    "loss.sigmoid_bias": ({"loss.weighting": "sigmoid"}, {"weighting": sigmoid()}),
    **dict.fromkeys(
        ("sampler.eta", "sampler.clip_keeps"),
        ({"sampler.name": "ddim"}, {"make_sampler": ddim_with(0.0)}),
    ),
    **dict.fromkeys(
        [f"sampler.churn{end}" for end in ("", "_min", "_max", "_noise")],
        ({"sampler.name": "heun", "sampler.churn": 9.0}, {"make_sampler": heun_with()}),
    ),
    **dict.fromkeys(
        [f"sampler.{field}" for field in ("predictor", "corrector_steps", "snr")],
        ({"sampler.name": "pc"}, {"make_sampler": pc_with()}),
    ),
    **dict.fromkeys(
        [f"sampler.{field}" for field in ("langevin_steps", "langevin_step_size")],
        ({"process.name": "ve", "sampler.name": "langevin"}, langevin_of_ve()),
    ),
    **dict.fromkeys(
        [f"sampler.{field}" for field in ("rtol", "atol", "max_steps")],
        ({"sampler.name": "ode_adaptive"}, {"make_sampler": adaptive_with()}),
    ),
    "sampler.order": (
        # With this network's eps, images of both orders are black or white.
        {"sampler.name": "unipc", "process.prediction": "x0"},
        {"make_sampler": unipc_of(3), "prediction": "x0"},
    ),
}


def config_with(fields: dict[str, Any]) -> ConfigDict:
    """Returns the default config with these fields; not validated, since "other" is no choice."""
    config = default_config()
    override(config, [(name, str(value)) for name, value in fields.items()])
    return config


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    def same(one: Any, other: Any) -> bool:
        if jax.tree.structure(one) != jax.tree.structure(other):
            return False
        return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))

    return {name for name in one if not same(one[name], other[name])}


WITH_VARIANCES = {"loss.vlb_weight"}  # Only in networks that have them: see the test below.
OF_FILES = {"optimizer.ema_snapshot_every"}  # Nothing is computed otherwise.
WITH_CLASSES = {f"sampler.guidance_{end}" for end in ("scale", "interval", "rescale", "rescale_of")}
OF_CLASSIFIERS = {f"sampler.classifier{end}" for end in ("", "_settings", "_scale")}  # Have files.


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    return by_hand()


@pytest.mark.filterwarnings("ignore:in .* steps the variance fixed_large")
@pytest.mark.parametrize(
    "name",
    slow_but(
        ("process.name", "loss.weighting", "optimizer.learning_rate", "sampler.eta"),
        [
            name
            for name in FIELDS
            if group_of(name) in ("process", "loss", "optimizer", "sampler")
            and name not in WITH_VARIANCES | WITH_CLASSES | OF_FILES | OF_CLASSIFIERS
        ],
    ),
)
@pytest.mark.parametrize("rest", [False, slow(True)], ids=["itself", "the rest"])
def test_a_field_changes_what_it_should_as_its_argument_does_and_not_the_rest(
    name: str, rest: bool
) -> None:
    text, argument, seen = CASES[name]
    expected, (needs, default) = by_hand(**argument), NEEDS.get(name, ({}, {}))
    assert differing(expected, by_hand(**default)) == seen
    parts = expected.keys() - seen if rest else seen
    found = built(config_with(BASE | needs | {name: text}), parts)
    chex.assert_trees_all_equal(found, {part: expected[part] for part in parts})


@pytest.mark.parametrize(
    ("fields", "by_hand"),
    [
        ({"loss.name": "vlb"}, lambda model: vlb(model, variance="fixed_large")),
        (
            {"loss.name": "vlb", "process.variance": "fixed_small", "loss.times": "stratified"},
            lambda model: vlb(model, variance="fixed_small"),
        ),
        (
            {"loss.name": "vlb", "process.variance": "learned"},
            lambda model: vlb(model, variance="learned"),
        ),
        (
            {"loss.name": "hybrid", "process.variance": "learned", "loss.vlb_weight": "0.5"},
            lambda model: hybrid(model, vlb_weight=0.5),
        ),
        (
            {"loss.name": "hybrid", "process.variance": "learned", "loss.weighting": "min_snr"},
            lambda model: hybrid(model, weighting=min_snr()),
        ),
    ],
)
def test_variance_and_weight_reach_the_variational_losses(fields: dict, by_hand: Any) -> None:
    exp = build.build(config_with(BASE | fields), SHAPE, 0)
    params = exp.network.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    x0, eps = jax.random.normal(jax.random.key(2), (2, 8, *SHAPE))
    drawn = NoiseDraw((jnp.arange(8) + 0.5) / 8, eps, jnp.ones(8))
    expected = by_hand(DiffusionModel(exp.process, "eps", exp.network.apply)).loss(
        params, (), x0, None, drawn, None
    )
    got = exp.objective().loss(params, (), x0, None, drawn, None)
    np.testing.assert_array_equal(got, expected)
    assert np.isfinite(expected).all() and len(np.unique(expected)) == 8


def test_the_samplers_variance_counts_before_the_processs() -> None:
    fields = {"process.variance": "fixed_small", "sampler.variance": "fixed_large"}
    found = built(config_with(BASE | fields), ["images"])
    np.testing.assert_array_equal(found["images"], by_hand()["images"])


@pytest.mark.parametrize(
    ("name", "make"), [("vp", VP), ("subvp", SubVP), ("ve", VE), ("ncsn", NCSN)]
)
def test_a_process_is_chosen_by_its_name(name: str, make: Any, usual: dict) -> None:
    expected = by_hand(make_process=sde(make))
    assert differing(expected, usual) == {"losses", "images"}
    found = built(config_with(BASE | {"process.name": name}), expected)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
    "name",
    [
        *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "euler_maruyama", "ode_heun", "pndm"),
        *("reverse_diffusion", "unipc"),
    ],
)
def test_a_sampler_is_chosen_by_its_name(name: str, usual: dict) -> None:
    process = DDPM(make_schedule("linear", T))
    given = {"process": process} if name in ("euler_maruyama", "pndm") else {}
    expected = by_hand(make_sampler=lambda grid, variance: SAMPLERS[name](grid, **given))
    assert differing(expected, usual) == {"images"}
    found = built(config_with(BASE | {"sampler.name": name}), ["images"])
    np.testing.assert_array_equal(found["images"], expected["images"])


# ---- guidance ----------------------------------------------------------------------------------------

GUIDED = {"model.num_classes": 2, "train.label_dropout": 0.1, "sampler.guidance_scale": 3}
GUIDED |= {"sampler.name": "ddim", "sampler.num_steps": 4, "process.prediction": "x0"}
OF_CLASSES = as_functions(MLP(channels=8, num_res_blocks=1, num_classes=2), SHAPE)


@pytest.mark.parametrize(
    ("fields", "scale", "options"),
    [
        ({}, 3.0, {}),
        ({"sampler.guidance_scale": 0}, 0.0, {}),
        ({"sampler.guidance_interval": "0.5,2"}, 3.0, {"interval": (0.5, 2.0)}),
        ({"sampler.guidance_rescale": 0.7}, 3.0, {"rescale": 0.7}),
        (
            {"sampler.guidance_rescale": 0.7, "sampler.guidance_rescale_of": "v"},
            3.0,
            {"rescale": 0.7, "rescale_of": "v"},
        ),
    ],
)
def test_fields_of_guidance_change_what_their_arguments_do(
    fields: dict, scale: float, options: dict
) -> None:
    exp = build.build(config_with(BASE | GUIDED | fields), SHAPE, 2)
    params = params_of_a_trained_network(exp.network)
    labels = jnp.arange(4) % 2
    both = jnp.concatenate([labels, jnp.full(4, 2)])
    denoise = DiffusionModel(exp.process, "x0", OF_CLASSES.apply).denoiser(params, both)
    sampler, keys = ddim(make_grid(exp.process, 4)), image_keys(0, jnp.arange(4))
    guided = clip_denoised(classifier_free(denoise, scale, **options))
    expected = sample_loop(guided, sampler, keys, SHAPE).images
    got = sampling.make_draw(exp)(params, sampling.traced_options(exp), jnp.arange(4), labels)
    np.testing.assert_array_equal(got.images, to_uint8(expected))
    assert sampling.make_sampler(exp).nfe == 4 and sampling.evaluations(exp) == 2
    alone = exp.denoiser(params, labels)  # The class alone: none of the cases.
    unguided = sample_loop(clip_denoised(alone), sampler, keys, SHAPE).images
    assert not np.array_equal(to_uint8(unguided), got.images)


def test_another_seed_eta_temperature_or_guidance_is_drawn_by_the_same_program() -> None:
    def of(*changes: tuple[str, str]) -> tuple[Experiment, sampling.TracedOptions]:
        exp = build.build(config_with(BASE | GUIDED | dict(changes)), SHAPE, 2)
        return exp, sampling.traced_options(exp)

    exp, first = of()
    params = params_of_a_trained_network(exp.network)
    chex.clear_trace_counter()
    counted: Any = jax.jit(chex.assert_max_traces(sampling.make_draw(exp), n=1))
    changed = ("sample.seed", "4"), ("sampler.eta", "1"), ("sampler.guidance_scale", "1.5")
    changed = (*changed, ("sampler.temperature", "0.5"))
    numbers = [first, *(of(change)[1] for change in (*changed, ("sampler.guidance_rescale", "1")))]
    images = [counted(params, n, jnp.arange(4), jnp.arange(4) % 2).images for n in numbers]
    assert all(np.abs(images[0].astype(int) - other).max() > 3 for other in images[1:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.num_classes": 0, "train.label_dropout": 0}, "but the model is unconditional"),
        ({"train.label_dropout": 0}, "but the model was trained without label dropout"),
        ({"sampler.guidance_interval": "5,0.2"}, r"interval is \(5.0, 0.2\); it must be two num"),
        ({"sampler.guidance_interval": "5"}, r"interval is \(5.0,\); it must be two numbers"),
        (
            {"sampler.guidance_scale": "none", "sampler.guidance_rescale": 0.5},
            "rescale is 0.5, but has no effect while sampler.guidance_scale is unset; set that too, or leave",
        ),
        (
            {"sampler.guidance_rescale_of": "eps"},
            "rescale_of is 'eps', but has no effect while sampler.guidance_rescale is 0",
        ),
        (
            {"sampler.clip": "false", "sampler.clip_keeps": "eps"},
            "clip_keeps is 'eps', but has no effect while",
        ),
        ({"sampler.name": "heun", "sampler.clip_keeps": "eps"}, "clip_keeps is 'eps', but the sam"),
    ],
)
def test_guidance_that_the_model_does_not_know_is_refused(fields: dict, message: str) -> None:
    build.validate(config_with(BASE | GUIDED))
    with pytest.raises(InputError, match=message):
        build.validate(config_with(BASE | GUIDED | fields))


def test_a_decay_ends_with_the_training() -> None:
    fields = {"optimizer.decay": "cosine", "train.num_steps": 500_000}
    expected = by_hand(rate_decay="cosine", total_steps=500_000)
    assert differing(expected, by_hand(rate_decay="cosine")) == {"updates"}
    found = built(config_with(BASE | fields), ["updates"])
    chex.assert_trees_all_equal(found["updates"], expected["updates"])


# ---- the network -------------------------------------------------------------------------------------

IMAGE = (4, 4, 1)
UNET = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 0, "attention_resolutions": (2,)}

# Field -> (text on the command line, the same as an argument of the network).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "model.channels": ("12", {"channels": 12}),
    "model.channel_mult": ("1,1", {"channel_mult": (1, 1)}),
    "model.num_res_blocks": ("1", {"num_res_blocks": 1}),
    "model.attention_resolutions": ("4", {"attention_resolutions": (4,)}),
    "model.dropout": ("0.5", {"dropout": 0.5}),
    "model.num_classes": ("3", {"num_classes": 3}),
    "model.norm_groups": ("4", {"norm_groups": 4}),
    "model.norm_eps": ("0.01", {"norm_eps": 0.01}),
    "model.time_embedding": ("fourier", {"time_embedding": "fourier"}),
    "model.time_scale": ("0.25", {"time_scale": 0.25}),
    "model.time_features": ("12", {"time_features": 12}),
    "model.embedding_width": ("12", {"embedding_width": 12}),
    "model.class_input": ("time", {"class_input": "time"}),
    "model.scale_shift": ("true", {"scale_shift": True}),
    "model.num_heads": ("2", {"num_heads": 2}),
    "model.head_channels": ("4", {"head_channels": 4}),
    "model.decoder_attention": ("level", {"decoder_attention": "level"}),
    "model.resample": ("block", {"resample": "block"}),
    "model.symmetric_padding": ("true", {"symmetric_padding": True}),
    "model.project_resampled": ("true", {"project_resampled": True}),
    "model.fir": ("1,3,3,1", {"fir": (1.0, 3.0, 3.0, 1.0)}),
    "model.skip_rescale": ("true", {"skip_rescale": True}),
    "model.input_pyramid": ("skip", {"input_pyramid": "skip"}),
    "model.output_pyramid": ("skip", {"output_pyramid": "skip"}),
    "model.dtype": ("bfloat16", {"dtype": jnp.bfloat16}),
    "model.remat": ("conv,attention", {"remat": ("conv", "attention")}),
}


# Field -> the option without which it has no use.
NETWORK_NEEDS: dict[str, dict[str, Any]] = {
    "model.class_input": {"num_classes": 3},
    "model.project_resampled": {"resample": "block"},
    # With one block of each level there are two, of which the last alone attends.
    "model.decoder_attention": {"num_res_blocks": 1},
}


def program(network: nn.Module, conditional: bool) -> str:
    """Returns the operations that make a network's parameters and output, while training, as text."""
    labels = jnp.zeros((2,), jnp.int32) if conditional else None

    def run(key: jax.Array, x: jax.Array, t: jax.Array) -> Any:
        return network.init_with_output(key, x, t, labels, jax.random.split(key, len(x)))

    jaxpr = jax.make_jaxpr(run)(jax.random.key(0), jnp.zeros((2, *IMAGE)), jnp.zeros(2))
    return re.sub("0x[0-9a-f]+", "", str(jaxpr))  # Addresses of functions.


@pytest.fixture(scope="module")
def usual_program() -> str:
    return program(UNet(**UNET), False)


@pytest.mark.parametrize(
    "name",
    [
        *("model.name", "model.num_classes"),
        *(f"model.{option}" for option in networks.NETWORKS["unet"].options),
    ],
)
def test_a_field_of_the_model_reaches_the_network(name: str, usual_program: str) -> None:
    fields = {f"model.{field}": str(value).strip("()") for field, value in UNET.items()}
    if name == "model.name":
        fields = {name: "mlp", "model.channels": 8, "model.num_res_blocks": 1}
        network = MLP(channels=8, num_res_blocks=1)
    else:
        text, argument = NETWORKS[name]
        needs = NETWORK_NEEDS.get(name, {})
        fields |= {f"model.{need}": str(value) for need, value in needs.items()} | {name: text}
        network = UNet(**UNET | needs | argument)
        if needs:
            usual_program = program(UNet(**UNET | needs), "num_classes" in needs)
    exp = build.build(config_with(fields), IMAGE, 3)
    # Of the image's channels, and the dtype by its name: as the field has it.
    assert exp.module == network.clone(out_channels=1, dtype=jnp.dtype(network.dtype).name)
    assert exp.conditional == (getattr(network, "num_classes", 0) > 0)
    assert program(network, exp.conditional) != usual_program
