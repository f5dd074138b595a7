"""From a config to objects: what is built is what the config says."""

import re
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import default_config, override
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build, checks, sampling
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers import SAMPLERS, Sampler, UpdateRule, ancestral


def experiment(*assignments: tuple[str, str]) -> build.Experiment:
    """Returns what the defaults on a small network stand for, with these fields as on the command line."""
    config = default_config()
    override(config, [("model.name", "mlp"), ("model.channels", "8"), *assignments])
    build.validate(config)
    return build.build(config, (2, 2, 1), 0)


# ---- steps that do not fit the process ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_steps", "spacing", "message"),
    [
        ("1001", "uniform", "sampler.num_steps is 1001; it must be an integer from 1 to 1000"),
        ("none", "0,1000", r"sampler.spacing is \(0, 1000\); .* distinct times from 0 to 999"),
        ("none", "5,0,5", r"sampler.spacing is \(5, 0, 5\); .* distinct times"),
        ("3", "0,999", "sampler.num_steps is 3, but spacing lists 2 times; leave one unset"),
    ],
)
def test_steps_that_the_process_does_not_have_are_refused_at_once(
    num_steps: str, spacing: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        experiment(("sampler.num_steps", num_steps), ("sampler.spacing", spacing))


@pytest.mark.parametrize(
    ("num_steps", "spacing", "steps"),
    [("none", "uniform", 1000), ("7", "logsnr", 7), ("none", "999,3", 2), ("2", "3,999", 2)],
)
def test_the_listed_timesteps_or_the_number_of_steps_make_the_grid(
    num_steps: str, spacing: str, steps: int
) -> None:
    fields = ("sampler.num_steps", num_steps), ("sampler.spacing", spacing)
    sampler = sampling.make_sampler(experiment(*fields, ("sampler.variance", "fixed_small")))
    assert sampler.nfe == sampler.grid.num_steps == steps
    if steps == 2:
        np.testing.assert_array_equal(sampler.grid.time, [999, 3, -1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((("sampler.eta", "0.5"),), "sampler.eta is 0.5, but the sampler 'ancestral' has none"),
        (
            (("sampler.name", "ddim"), ("sampler.variance", "fixed_small")),
            "sampler.variance is 'fixed_small', but the sampler 'ddim' has none; leave it unset",
        ),
    ],
)
def test_an_option_that_the_sampler_does_not_take_is_refused(fields: tuple, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        experiment(*fields)


@pytest.fixture
def few_samplers() -> Iterator[None]:
    """Samplers with options that are checked are removed; later all are there in their order."""
    everything = dict(SAMPLERS)
    for name in ("heun", "ddim", "ode_adaptive"):
        del SAMPLERS[name]
    yield
    SAMPLERS.clear()
    SAMPLERS.update(everything)


@pytest.mark.usefixtures("few_samplers")
def test_a_config_is_checked_without_samplers_that_were_removed() -> None:
    config = default_config()
    build.validate(config)
    checks.check_invertible(config)
    config.edit.latents = True
    with pytest.raises(InputError, match="^edit.latents needs a sampler that can be inverted"):
        checks.check_invertible(config)


def test_an_option_of_an_inverse_is_refused_by_the_edit_that_uses_it_alone() -> None:
    config = default_config()
    override(config, [("edit.latents", "true"), ("edit.iterations", "2")])
    build.validate(config)
    override(config, [("sampler.name", "ode_adaptive"), ("edit.iterations", "2")])
    build.validate(config)
    message = (
        "^edit.iterations is 2, but the sampler 'ode_adaptive' has none; leave it at its default, 0"
    )
    with pytest.raises(InputError, match=message):
        checks.check_invertible(config)
    config.sampler.name = "ddim"
    checks.check_invertible(config)
    config.sampler.eta = 0.5
    message = (
        "^edit.latents needs a sampler that can be inverted, ddim with sampler.eta=0 or ode_adaptive; "
        "sampler.name is 'ddim', with eta 0.5$"
    )
    with pytest.raises(InputError, match=message):
        checks.check_invertible(config)
    override(config, [("sampler.name", "heun")])
    with pytest.raises(InputError, match="; sampler.name is 'heun'$"):
        checks.check_invertible(config)


def test_options_that_do_not_fit_one_another_are_refused_before_any_work() -> None:
    churns = ("sampler.churn", "9"), ("sampler.churn_min", "2"), ("sampler.churn_max", "1")
    message = "^sampler.churn_max is 1.0; it must be at least sampler.churn_min, 2.0$"
    with pytest.raises(InputError, match=message):
        experiment(("sampler.name", "heun"), *churns)
    message = "^sampler.churn_max is 1.0, but has no effect while sampler.churn is 0; set that too, or leave it unset$"
    with pytest.raises(InputError, match=message):
        experiment(("sampler.name", "heun"), ("sampler.churn_max", "1"))
    message = "^sampler.snr is 0.1, but has no effect while sampler.corrector_steps is 0; set that too, or leave"
    with pytest.raises(InputError, match=message):
        experiment(("sampler.name", "pc"), ("sampler.corrector_steps", "0"), ("sampler.snr", "0.1"))


@pytest.mark.parametrize("process", ["ddpm", "vp", "subvp"])
def test_langevin_dynamics_are_refused_for_a_process_that_changes_the_signal(process: str) -> None:
    message = f"^sampler.name is 'langevin', which does not fit the process '{process}'; it fits ve, ncsn$"
    with pytest.raises(InputError, match=message):
        experiment(("process.name", process), ("sampler.name", "langevin"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((("process.beta_min", "1"),), "process.beta_min is 1.0, but the process 'ddpm' has none"),
        (
            (("process.name", "vp"), ("process.schedule", "cosine")),
            "process.schedule is 'cosine', but the process 'vp' has none; leave it at its default",
        ),
        (
            (("process.name", "ve"), ("process.beta_max", "3")),
            "process.beta_max is 3.0, but the process 've' has none",
        ),
        ((("loss.u_min", "0.1"),), "loss.u_min is 0.1, but the process 'ddpm' has none"),
        ((("sampler.u_min", "0.1"),), "sampler.u_min is 0.1, but the process 'ddpm' has none"),
        ((("eval.u_min", "0.1"),), "eval.u_min is 0.1, but the process 'ddpm' has none"),
        (
            (("process.name", "ve"), ("process.sigma_max", "0.01")),
            "process.sigma_min is 0.02 and sigma_max is 0.01; they must be positive and increasing",
        ),
        (
            (("process.name", "subvp"), ("process.beta_min", "20")),
            "process.beta_min is 20.0 and beta_max is 20.0",
        ),
        (
            (("process.name", "vp"), ("edit.times", "5,1200")),
            r"edit.times is \(5, 1200\); it must hold distinct times from 0.999 to 999$",
        ),
        (
            (("process.name", "ve"), ("edit.start_t", "-4")),
            "edit.start_t is -4; it must be from -3.91194 to 4.60517$",
        ),
        ((("edit.times", "0,1000"),), r"edit.times is .* from 0 to 999 \(T - 1\)$"),
    ],
)
def test_what_the_process_does_not_have_is_refused(fields: tuple, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        experiment(*fields)


SIGMAS = (("process.name", "ve"), ("process.sigma_min", "0.02"), ("process.sigma_max", "10"))


def test_the_ends_that_a_refusal_names_are_allowed() -> None:
    # The last is log(10) = 2.302585...: it is named farther out than it is.
    with pytest.raises(
        InputError, match="^edit.start_t is 3; it must be from -3.91196 to 2.30259$"
    ):
        experiment(*SIGMAS, ("edit.start_t", "3"))
    experiment(*SIGMAS, ("edit.start_t", "2.30259"), ("edit.times", "2.30259,-3.91196"))
    times = ("sampler.spacing", "2.30259,0,-3.91196")
    built = experiment(*SIGMAS, times, ("sample.shared_t", "2.30259"), ("sampler.name", "ddim"))
    grid = sampling.make_sampler(built).grid
    np.testing.assert_allclose(grid.std[0], 10, rtol=1e-12)  # At the end itself, not beyond.


def test_a_time_that_is_refused_is_named_apart_from_the_end() -> None:
    with pytest.raises(InputError, match="^edit.start_t is 2.3026; .* to 2.30259$"):
        experiment(*SIGMAS, ("edit.start_t", "2.3026"))
    with pytest.raises(InputError, match=r"^edit.times is \(0, 2.3025999\); .* to 2.30259$"):
        experiment(*SIGMAS, ("edit.times", "0,2.3025999"))


def test_a_time_of_the_grid_to_six_digits_is_not_warned_of() -> None:
    grid = make_grid(experiment(*SIGMAS).process, 5)  # Its second time is 0.7489485995...
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.warn_of_times(grid, [2.30259, 0.748949], [0, 1], "edit.times")
    message = "edit.times: t = 0.7 is not on the sampler's grid; using the nearest times 2.30259, 0.748949$"
    with pytest.warns(UserWarning, match=message):
        checks.warn_of_times(grid, [2.30259, 0.7], [0, 1], "edit.times")


# ---- a warning ---------------------------------------------------------------------------------------

FEW = ("sampler.num_steps", "10")


def test_few_steps_with_the_variance_of_many_are_warned_of() -> None:
    # With the betas 1e-4 + 0.0199 t / 999, 1 - alpha_bar is 1e-4 at t = 0 and 0.12639 at t = 111, the next of ten.
    message = "with 10 steps instead of 1000, .* fixed_large is up to 1,264 times the posterior's; set --config"
    with pytest.warns(UserWarning, match=message) as caught:
        sampling.make_sampler(experiment(FEW, ("process.variance", "fixed_large")))
    with pytest.warns(UserWarning, match=message):
        sampling.make_sampler(
            experiment(
                FEW, ("process.variance", "fixed_small"), ("sampler.variance", "fixed_large")
            )
        )
    assert len(caught) == 1


def test_steps_short_enough_for_both_variances_are_not_warned_of(
    recwarn: pytest.WarningsRecorder,
) -> None:
    # The variances of a step of VE differ by the square of its ratio of sigmas: 2500^(2/49) = 1.38 with 50 steps, and
    # 2500^(2/9) = 5.7 with ten.
    ve = (
        ("process.name", "ve"),
        ("process.sigma_min", "0.02"),
        ("process.sigma_max", "50"),
        ("process.variance", "fixed_large"),
    )
    sampling.make_sampler(experiment(*ve, ("sampler.num_steps", "50")))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="fixed_large is up to 6 times the posterior's"):
        sampling.make_sampler(experiment(*ve, ("sampler.num_steps", "10")))


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        (("sampler.num_steps", "1000"),),
        (("sampler.num_steps", "1"),),  # It adds no noise.
        (FEW, ("sampler.variance", "fixed_small")),
        (FEW, ("process.variance", "fixed_small")),
    ],
)
def test_other_steps_and_variances_are_not_warned_of(assignments: tuple) -> None:
    with warnings.catch_warnings(action="error"):
        sampling.make_sampler(experiment(*assignments))


@pytest.mark.parametrize("spacing", ["7", "10,200"])
def test_a_sampler_that_starts_where_images_still_show_is_warned_of(spacing: str) -> None:
    small = ("sampler.variance", "fixed_small")
    with pytest.warns(UserWarning, match="starts from noise at t = .* signal of .*later times"):
        sampling.make_sampler(experiment(small, ("sampler.spacing", spacing)))
    with warnings.catch_warnings(action="error"):
        sampling.make_sampler(experiment(small, ("sampler.spacing", f"{spacing},999")))
    # Of a process that never hides the image, the last time is the best there is.
    with pytest.warns(UserWarning) as seen:
        sampling.make_sampler(experiment(small, ("process.beta_end", "0.0002")))
    assert len(seen) == 1 and "does not end in noise alone" in str(seen[0].message)


def test_a_sampler_that_takes_no_variance_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet(grid: Grid) -> Sampler:
        return ancestral(grid)

    monkeypatch.setitem(SAMPLERS, "ancestral", UpdateRule(quiet, "quiet"))
    with warnings.catch_warnings(action="error"):
        assert sampling.make_sampler(experiment(FEW)).nfe == 10


@pytest.mark.parametrize(
    ("name", "schedule", "spacing", "message"),
    [
        ("heun", "cosine", "uniform", "falls by a factor of 3,546 in a step; .*spacing=karras"),
        ("heun", "cosine", "karras", None),
        ("heun", "linear", "karras", None),
        ("pndm", "cosine", "trailing", "pndm divides by the signal, which is 4.9e-05 at t = 999"),
        ("pndm", "cosine", "leading", None),
        ("pndm", "linear", "uniform", None),
        ("pndm", "linear", "karras", "pndm is for even steps"),
    ],
)
def test_a_solver_is_warned_of_steps_that_it_is_not_for(
    name: str, schedule: str, spacing: str, message: str | None
) -> None:
    fields = {"sampler.name": name, "process.schedule": schedule, "sampler.spacing": spacing}
    exp = experiment(FEW, *fields.items())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampling.make_sampler(exp)
    assert len(caught) == (message is not None)
    if message is not None:
        assert re.search(message, str(caught[0].message))


# ---- learned variances -------------------------------------------------------------------------------


def test_a_network_of_learned_variances_has_twice_the_channels_and_a_sampler_that_uses_them() -> (
    None
):
    exp = experiment(("process.variance", "learned"), ("loss.name", "hybrid"))
    params = exp.network.init(jax.random.key(0))
    x = jnp.zeros((3, 2, 2, 1))
    assert exp.network.apply(params, x, jnp.zeros(3)).shape == (3, 2, 2, 2)
    images = sampling.make_draw(exp)(
        params, sampling.traced_options(exp), jnp.arange(2), None
    ).images
    assert images.shape == (2, 2, 2, 1)


def test_learned_variances_are_refused_for_a_network_that_was_trained_without() -> None:
    with pytest.raises(InputError, match="^sampler.variance is 'learned', but .* 'fixed_large'$"):
        experiment(("sampler.variance", "learned"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"process.variance": "learned"},
            "process.variance is 'learned', but the loss 'simple' does not train",
        ),
        (
            {"loss.name": "hybrid"},
            "loss.name is 'hybrid', but process.variance is 'fixed_large'; it must be l",
        ),
        (
            {"loss.vlb_weight": "1"},
            "loss.vlb_weight is 1.0, but the loss 'simple' has none; leave it at its default, 0.001",
        ),
        (
            {"process.name": "vp", "loss.name": "vlb", "loss.u_min": "0.01"},
            "loss.u_min is 0.01, but the loss 'vlb' has none; leave it unset",
        ),
        (
            {"loss.name": "vlb", "loss.weighting": "p2"},
            "loss.weighting is 'p2', but the loss 'vlb' has none; leave it unset",
        ),
        ({"eval.variance": "learned"}, "eval.variance is 'learned', but the model has no channels"),
        (
            {"eval.num_steps": "1001"},
            "eval.num_steps is 1001; it must be an integer from 1 to 1000",
        ),
        ({"eval.num_terms": "1"}, "eval.num_terms is 1; it must be an integer from 2 to 1000"),
        ({"eval.num_steps": "8", "eval.num_terms": "9"}, "eval.num_terms is 9; .* from 2 to 8"),
    ],
)
def test_what_loss_variance_and_bound_do_not_fit_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        experiment(*fields.items())


# ---- a process that does not end in its prior --------------------------------------------------------


PAPERS_BETAS = ("process.beta_start", "1e-4"), ("process.beta_end", "0.02")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            (("process.num_timesteps", "100"), *PAPERS_BETAS),
            "ddpm .* at t = 99 images keep a signal of 0.6 beside noise of 0.8, .*; set process.num_timesteps",
        ),
        ((("process.name", "vp"), ("process.beta_max", "1")), "signal of 0.76 .* process.beta_max"),
        ((("process.name", "ve"), ("process.sigma_max", "1")), "signal of 1 .* process.sigma_max"),
        ((("process.name", "ncsn"), ("process.sigma_max", "2")), "noise of 2, .*sigma_max"),
    ],
)
def test_a_process_that_does_not_end_in_noise_alone_is_warned_of(fields, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        sampling.make_sampler(experiment(*fields))


@pytest.mark.parametrize(
    "fields",
    [
        PAPERS_BETAS,
        (("process.num_timesteps", "100"),),
        (("process.name", "vp"),),
        (("process.name", "subvp"),),
        (("process.name", "ve"), ("process.sigma_max", "10")),
    ],
)
def test_a_process_of_the_recipes_is_not_warned_of(fields) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sampling.make_sampler(experiment(*fields))


def test_auto_conditions_on_the_classes_of_the_data_and_on_none_where_it_has_none() -> None:
    config = default_config()
    auto = {"model.num_classes": "auto", "model.name": "mlp", "train.label_dropout": "0.1"}
    override(config, list(auto.items()))
    labeled = build.build(config, (8, 8, 1), 3)
    assert labeled.num_classes == 3 and labeled.classless
    unlabeled = build.build(config, (8, 8, 1), 0)
    assert not unlabeled.conditional and unlabeled.config.train.label_dropout == 0
