"""Arguments that are something else than is meant are found at the call, in one line that names the remedy."""
# Arguments here are wrong on purpose.
# pyright: reportArgumentType=false, reportCallIssue=false

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.losses import TIME_SAMPLERS, WEIGHTINGS, loss_function
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.training.optimizer import ema_decay, make_optimizer
from diffusion_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unchecked")
SHAPE = (8, 8, 1)
PROCESS = dj.DDPM(dj.make_schedule("linear", 20, 1e-4, 0.02))
NETWORK = dj.as_functions(dj.models.MLP(channels=4, num_res_blocks=1), SHAPE)
CONDITIONAL = dj.as_functions(dj.models.MLP(channels=4, num_res_blocks=1, num_classes=10), SHAPE)
IMAGES, TIMES_0 = jnp.zeros((4, *SHAPE)), jnp.zeros(4)
GRID = make_grid(PROCESS, 2)


def denoise(x, point):
    raise AssertionError("arguments are looked at before")


def train_step(**options):
    objective = loss_function("simple", DiffusionModel(PROCESS, "eps", NETWORK.apply))
    return make_train_step(objective, make_optimizer(), **({"key": jax.random.key(0)} | options))


def call(network, images=IMAGES, labels=None):
    params = jax.eval_shape(network.init, jax.random.key(0))
    return jax.eval_shape(network.apply, params, images, jnp.zeros(len(images)), labels)


def unet(shape=SHAPE, **options):
    return dj.as_functions(dj.UNet(**({"channels": 8, "channel_mult": (1, 2)} | options)), shape)


BETAS = np.linspace(1e-4, 0.02, 20)
CASES = {
    "own betas": (lambda: dj.DDPM(BETAS), "schedule is of type ndarray; .*schedule_from_betas"),
    "betas for a name": (
        lambda: dj.make_schedule(BETAS, 20),
        "unknown schedule of type ndarray; choose one of linear",
    ),
    "weighting by name": (
        lambda: loss_function(
            "simple", DiffusionModel(PROCESS, "eps", NETWORK.apply), weighting="min_snr"
        ),
        r"weighting is 'min_snr'; .*WEIGHTINGS\['min_snr'\]\(\)",
    ),
    "times by name": (
        lambda: loss_function(
            "simple", DiffusionModel(PROCESS, "eps", NETWORK.apply), times="stratified"
        ),
        r"times is 'stratified'; .*TIME_SAMPLERS\['stratified'\]\(\)",
    ),
    "a decay in place of its function": (
        lambda: train_step(averages={"ema": 0.99}),
        r"averages\['ema'\] is 0.99; .*ema_decay\(0.99\)",
    ),
    "a seed for a key": (lambda: train_step(key=0), "a key is needed, not 0; .*jax.random.key"),
    "seeds for image keys": (
        lambda: dj.sample_loop(denoise, dj.ancestral(GRID), 0, SHAPE),
        "a key is needed, not 0; .*image_keys",
    ),
    "one key for all images": (
        lambda: dj.sample_loop(denoise, dj.ancestral(GRID), jax.random.key(0), SHAPE),
        r"keys have shape \(\); .*image_keys",
    ),
    "a grid for a sampler": (
        lambda: dj.sample_loop(denoise, GRID, dj.image_keys(0, np.arange(2)), SHAPE),
        r"sampler is Grid\(3 points, times 19 to -1\); it must be a Sampler, such as ancestral",
    ),
    "dropped labels without a label for none": (
        lambda: train_step(conditional=True, label_dropout=0.5),
        "label_dropout is 0.5, but no_label is missing",
    ),
    "dropped labels without labels": (
        lambda: train_step(label_dropout=0.5, no_label=3),
        "label_dropout is 0.5, but no labels are used",
    ),
    "process and grid exchanged": (
        lambda: dj.exact_likelihood(denoise, PROCESS, GRID, IMAGES),
        r"grid is of type DDPM; it must be a Grid, such as make_grid\(process, 2\)",
    ),
    "images before the process": (
        lambda: dj.exact_likelihood(denoise, GRID, IMAGES, PROCESS),
        "process is of type ArrayImpl; it must be a process",
    ),
    "parameters for a denoiser": (
        lambda: dj.exact_likelihood({}, GRID, PROCESS, IMAGES),
        "denoise is {}; it must be a denoiser",
    ),
    "a bound of a process": (
        lambda: dj.variational_bound(denoise, PROCESS, IMAGES, dj.image_keys(0, np.arange(4))),
        "grid is of type DDPM; it must be a Grid",
    ),
    "a bound of pixels": (
        lambda: dj.variational_bound(
            denoise, GRID, jnp.zeros((4, *SHAPE), jnp.uint8), dj.image_keys(0, np.arange(4))
        ),
        r"x0 has dtype uint8; .*to_model_range\(images\)",
    ),
    "a number for indices": (
        lambda: dj.image_keys(0, 4),
        r"indices is 4; it must be a one-dimensional array, such as np.arange\(4\)",
    ),
    "a size that the levels do not divide": (
        lambda: unet((9, 9, 1)),
        "images of 9x9 are not divisible by 2, the factor of 2 levels",
    ),
    "two channels": (lambda: call(unet(channels=2)), "channels is 2; it must be even, and at"),
    "odd channels": (lambda: call(unet(channels=5)), "channels is 5; it must be even, and at"),
    "groups that do not divide": (lambda: call(unet(norm_groups=3)), "norm_groups is 3; it must"),
    "channels first": (
        lambda: call(NETWORK, jnp.zeros((4, 1, 8, 8))),
        r"images have shape \(4, 1, 8, 8\); the network is for \(b, 8, 8, 1\), channels last",
    ),
    "no axis of channels": (lambda: call(NETWORK, jnp.zeros((4, 8, 8))), "images have shape"),
    "labels without classes": (
        lambda: call(NETWORK, labels=jnp.zeros(4, int)),
        "labels are given to a network without classes",
    ),
    "classes without labels": (
        lambda: call(CONDITIONAL),
        "labels are missing: the network has 10 classes; label 10 stands for none",
    ),
    "one label for four images": (
        lambda: call(CONDITIONAL, labels=jnp.zeros(1, int)),
        r"labels have shape \(1,\) and dtype int32; they must be 4 integers, one per image",
    ),
    "one-hot labels": (lambda: call(CONDITIONAL, labels=jnp.zeros((4, 10), int)), "labels have"),
    "labels as floats": (lambda: call(CONDITIONAL, labels=jnp.zeros(4)), "dtype float32"),
    "a label that is no class": (
        lambda: NETWORK_CALL(np.array([0, 1, 2, 11])),
        "labels go from 0 to 11; they must be in 0 to 10",
    ),
}


def NETWORK_CALL(labels):
    """Labels as a notebook gives them: known, not traced."""
    params = jax.eval_shape(CONDITIONAL.init, jax.random.key(0))
    return jax.eval_shape(lambda p: CONDITIONAL.apply(p, IMAGES, TIMES_0, labels), params)


@pytest.mark.parametrize("name", CASES)
def test_the_call_says_what_is_needed(name: str):
    make, message = CASES[name]
    with pytest.raises(dj.InputError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_what_the_remedies_name_works():
    loss_function(
        "simple",
        DiffusionModel(PROCESS, "eps", NETWORK.apply),
        weighting=WEIGHTINGS["min_snr"](),
        times=TIME_SAMPLERS["stratified"](),
    )
    train_step(averages={"ema": ema_decay(0.99)}, conditional=True, label_dropout=0.1, no_label=0)


def test_a_schedule_of_own_betas_is_the_named_one_of_the_same():
    own, named = dj.processes.schedule_from_betas(BETAS), dj.make_schedule("linear", 20, 1e-4, 0.02)
    for mine, theirs in zip(jax.tree.leaves(own), jax.tree.leaves(named), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert dj.DDPM(dj.processes.schedule_from_betas([0.1, 0.2])).num_timesteps == 2


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], r"betas have shape \(0,\)"),
        ([[0.1]], r"betas have shape \(1, 1\)"),
        ([0.1, 0.0], r"betas\[1\] is 0"),
        ([float("nan")], r"betas\[0\] is nan"),
        ([0.1, 1.5], r"betas\[1\] is 1.5"),
        ([0.5, 1e-20, 0.1], r"betas\[1\] is 1e-20, too small beside those before it"),
        ("abc", "betas are not numbers"),
        ([[0.1], [0.1, 0.2]], "betas are not numbers"),
    ],
)
def test_betas_that_are_no_schedule_are_refused(betas, message: str):
    with pytest.raises(dj.InputError, match=message):
        dj.processes.schedule_from_betas(betas)


@pytest.mark.parametrize(
    "value", [PROCESS, PROCESS.schedule, GRID, PROCESS.at(np.arange(3.0)), make_grid(dj.VP())]
)
def test_a_repr_is_short(value):
    assert len(repr(value)) < 100 and re.match(r"^\w+\(.*\)$", repr(value))


@pytest.mark.parametrize(
    "process", ["ddpm", PROCESS.schedule, dj.VP], ids=["a name", "a schedule", "a class"]
)
@pytest.mark.parametrize(
    "use",
    [
        lambda process: dj.DiffusionModel(process, "eps", NETWORK.apply),
        lambda process: make_grid(process, 2),
        *(
            lambda process, name=name: dj.samplers.SAMPLERS[name](GRID, process)
            for name in ("heun", "pndm", "euler_maruyama", "predictor_corrector", "ode_adaptive")
        ),
    ],
)
def test_what_is_no_process_is_refused_at_once(use, process):
    with pytest.raises(dj.InputError, match="^process is .*; it must be a Process, such as VP"):
        use(process)


@pytest.mark.parametrize("name", ["heun", "pndm", "euler_maruyama", "predictor_corrector"])
def test_a_grid_of_another_process_is_refused(name: str):
    message = "the grid is not of this process: at time 19 .*; make it by make_grid"
    with pytest.raises(dj.InputError, match=message):
        dj.samplers.SAMPLERS[name](GRID, dj.VP(beta_max=5.0))


@pytest.mark.parametrize("make", [dj.ancestral, dj.ddim, dj.samplers.dpmpp_2m])
def test_what_is_no_grid_is_refused(make):
    with pytest.raises(dj.InputError, match="; it must be a Grid, such as make_grid"):
        dj.sample_loop(denoise, make(PROCESS), dj.image_keys(0, np.arange(2)), SHAPE)


def test_a_network_that_is_no_function_and_a_class_of_modules_are_refused():
    with pytest.raises(dj.InputError, match="^network is .*; it must be .* such as as_functions"):
        dj.DiffusionModel(PROCESS, "eps", NETWORK)
    with pytest.raises(dj.InputError, match="^module is .*; it must be a Linen module"):
        dj.as_functions(dj.UNet, SHAPE)


def test_signatures_show_annotations_as_they_are_written():
    shown = str(inspect.signature(dj.sample_loop))
    assert "keys: \"Key[Array, ' b']\"" in shown and "-> 'SampleResult'" in shown
    for function in (dj.sample_loop, dj.samplers.heun, dj.processes.q_sample, dj.UNet, dj.load_run):
        assert "jaxtyping." not in str(inspect.signature(function))
    assert "object at 0x" not in str(inspect.signature(dj.samplers.heun))
