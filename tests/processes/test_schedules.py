"""The variance schedules against closed forms and exact decimal arithmetic."""

import inspect
import math
import warnings
from decimal import Decimal, localcontext
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.processes.schedules import (
    SCHEDULES,
    Schedule,
    make_schedule,
    respace,
    schedule_arrays,
)

# Half the spacing of float32 numbers around 1: the error of one rounding.
ROUNDING = 2.0**-24


def arrays(schedule: Schedule) -> dict[str, Any]:
    own = {"log_alpha_bar": schedule.log_alpha_bar, "timesteps": schedule.timesteps}
    return own | schedule_arrays(schedule)._asdict()


def quiet_schedule(name: str, num_timesteps: int) -> Schedule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_schedule(name, num_timesteps)


def test_linear_schedule_has_the_known_endpoints():
    schedule = make_schedule("linear", 1000)
    np.testing.assert_allclose(
        schedule_arrays(schedule).alpha_bar[-1], 4.035829765375676e-05, rtol=2 * ROUNDING
    )
    np.testing.assert_allclose(
        schedule_arrays(schedule).betas[[0, -1]], [1e-4, 0.02], rtol=2 * ROUNDING
    )
    np.testing.assert_allclose(
        np.diff(schedule_arrays(schedule).betas.astype(float)), (0.02 - 1e-4) / 999, rtol=1e-3
    )


def test_first_step_variance_of_the_bound_is_the_second_posterior_variance():
    schedule = make_schedule("linear", 1000)
    # By hand: beta_2 (1 - alpha_bar_1) / (1 - alpha_bar_2) with beta_1 = 1e-4, beta_2 = 1e-4 +
    # 0.0199/999.
    beta_1, beta_2 = 1e-4, 1e-4 + 0.0199 / 999
    by_hand = beta_2 * beta_1 / (1 - (1 - beta_1) * (1 - beta_2))
    assert by_hand == pytest.approx(5.45e-5, rel=1e-3)
    for log_variance in (
        schedule_arrays(schedule).fixed_large_log_variance,
        schedule_arrays(schedule).posterior_log_variance_clipped,
    ):
        # float32 logs near -10 are 1e-6 apart
        np.testing.assert_allclose(log_variance[0], math.log(by_hand), atol=1e-6)
    np.testing.assert_allclose(
        schedule_arrays(schedule).fixed_large_log_variance[1:],
        np.log(schedule_arrays(schedule).betas[1:]),
        atol=1e-6,
    )
    assert schedule_arrays(schedule).posterior_variance[0] == 0


@pytest.mark.parametrize(
    "name", ["linear", "quad", "const", "warmup10", "cosine", "sigmoid", "jsd"]
)
@pytest.mark.parametrize("num_timesteps", [1, 2, 37])
def test_derived_arrays_are_exact_to_one_float32_rounding(name, num_timesteps):
    schedule = quiet_schedule(name, num_timesteps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = {} if name in ("cosine", "sigmoid", "jsd") else {"start": 0.1, "end": 0.5}
        if default:
            start = None if name == "const" else 0.1
            schedule = make_schedule(name, num_timesteps, start, 0.5)
    args = tuple(default.values())
    with localcontext() as context:
        context.prec = 60
        betas = [Decimal(float(b)) for b in SCHEDULES[name](num_timesteps, *args)]
        previous = Decimal(1)
        for t, beta in enumerate(betas):
            alpha_bar = previous * (1 - beta)
            if alpha_bar == 0:  # the last step of jsd
                assert name == "jsd" and t == num_timesteps - 1
                assert schedule_arrays(schedule).alpha_bar[t] < 1e-15
                break
            expected = {
                "betas": beta,
                "log_betas": beta.ln(),
                "alphas": 1 - beta,
                "alpha_bar": alpha_bar,
                "alpha_bar_prev": previous,
                "sqrt_alpha_bar": alpha_bar.sqrt(),
                "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
                "sqrt_recip_alpha_bar": (1 / alpha_bar).sqrt(),
                "sqrt_recipm1_alpha_bar": (1 / alpha_bar - 1).sqrt(),
                "posterior_mean_coef_x0": previous.sqrt() * beta / (1 - alpha_bar),
                "posterior_mean_coef_xt": (1 - beta).sqrt() * (1 - previous) / (1 - alpha_bar),
                "posterior_variance": beta * (1 - previous) / (1 - alpha_bar),
                "logsnr": (alpha_bar / (1 - alpha_bar)).ln(),
            }
            for field, value in expected.items():
                # Besides the rounding: float64 on the way, worst where 1 - beta is 1e-9 (sigmoid's
                # end).
                np.testing.assert_allclose(
                    arrays(schedule)[field][t],
                    float(value),
                    rtol=1.01 * ROUNDING,
                    atol=1e-12,
                    err_msg=field,
                )
            previous = alpha_bar


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_log_betas_are_those_of_every_step_the_first_included(name):
    schedule = make_schedule(name, 1000)
    exact = np.log(SCHEDULES[name](1000, *((1e-4, 0.02) if name == "linear" else ())))
    np.testing.assert_allclose(schedule_arrays(schedule).log_betas, exact, rtol=2 * ROUNDING)
    # The table of the bound differs there: its first entry is the second step's log beta_tilde.
    assert (
        abs(
            schedule_arrays(schedule).log_betas[0]
            - schedule_arrays(schedule).fixed_large_log_variance[0]
        )
        > 0.5
    )


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_roots_keep_their_precision_at_1000_steps(name):
    schedule = make_schedule(name, 1000)
    with localcontext() as context:
        context.prec = 60
        args = (1e-4, 0.02) if name == "linear" else ()
        alpha_bar = Decimal(1)
        for t, beta in enumerate(SCHEDULES[name](1000, *args)):
            alpha_bar *= 1 - Decimal(float(beta))
            root = float((1 - alpha_bar).sqrt())
            assert (
                abs(float(schedule_arrays(schedule).sqrt_one_minus_alpha_bar[t]) / root - 1)
                < 1.01 * ROUNDING
            )
            root = float(alpha_bar.sqrt())
            assert (
                abs(float(schedule_arrays(schedule).sqrt_alpha_bar[t]) / root - 1) < 1.01 * ROUNDING
            )


def test_cosine_follows_its_formula_and_is_capped():
    schedule = make_schedule("cosine", 100)

    def f(step: int) -> float:
        return math.cos((step / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(t + 1) / f(0) for t in range(99)]
    np.testing.assert_allclose(
        schedule_arrays(schedule).alpha_bar[:99], expected, rtol=2 * ROUNDING
    )
    np.testing.assert_allclose(schedule_arrays(schedule).betas[99], 0.999, rtol=2 * ROUNDING)


def test_sigmoid_follows_its_formula():
    schedule = make_schedule("sigmoid", 50)

    def gamma(u: float) -> float:
        def logistic(z: float) -> float:
            return 1 / (1 + math.exp(-z))

        return (logistic(3) - logistic(-3 + 6 * u)) / (logistic(3) - logistic(-3))

    expected = [gamma((t + 1) / 50) for t in range(49)] + [1e-9]
    np.testing.assert_allclose(schedule_arrays(schedule).alpha_bar, expected, rtol=2 * ROUNDING)
    assert gamma(0.5) == pytest.approx(0.5)  # the formula is symmetric


def test_jsd_lets_alpha_bar_fall_linearly_to_zero():
    schedule = make_schedule("jsd", 10)
    # (1 - 1/10)(1 - 1/9)... telescopes to (9 - t) / 10.
    np.testing.assert_allclose(
        schedule_arrays(schedule).alpha_bar, np.arange(9, -1, -1) / 10, rtol=1e-6, atol=1e-15
    )
    assert schedule_arrays(schedule).betas[-1] == 1
    assert schedule_arrays(schedule).logsnr[-1] == -40


def test_quad_const_and_warmups_follow_the_experiments_of_ho_et_al():
    quad = make_schedule("quad", 11, 0.01, 0.04)
    np.testing.assert_allclose(
        np.sqrt(schedule_arrays(quad).betas), np.linspace(0.1, 0.2, 11), rtol=1e-6
    )
    const = make_schedule("const", 7, beta_end=0.3)
    np.testing.assert_allclose(schedule_arrays(const).betas, 0.3, rtol=1e-6)
    warmup10 = make_schedule("warmup10", 40, 0.1, 0.4)
    np.testing.assert_allclose(schedule_arrays(warmup10).betas[:4], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(schedule_arrays(warmup10).betas[4:], 0.4, rtol=1e-6)
    warmup50 = make_schedule("warmup50", 7, 0.1, 0.4)
    np.testing.assert_allclose(
        schedule_arrays(warmup50).betas, [0.1, 0.25, 0.4, 0.4, 0.4, 0.4, 0.4], rtol=1e-6
    )


def test_default_betas_scale_with_the_number_of_steps():
    schedule = make_schedule("linear", 250)
    np.testing.assert_allclose(schedule_arrays(schedule).betas[[0, -1]], [4e-4, 0.08], rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_schedule("linear", 21)
        make_schedule("linear", 5, beta_end=0.5)
        make_schedule("cosine", 5)
    with pytest.warns(UserWarning, match="beta_end for T = 20 .*capped at 0.999"):
        schedule = make_schedule("linear", 20)
    np.testing.assert_allclose(schedule_arrays(schedule).betas[-1], 0.999, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 1000, 4000])
def test_every_array_is_finite_and_noise_grows(name, num_timesteps):
    schedule = quiet_schedule(name, num_timesteps)
    assert schedule.num_timesteps == num_timesteps
    for field, values in arrays(schedule).items():
        assert values.shape == (num_timesteps,), field
        assert values.dtype == (np.float32 if field == "timesteps" else np.float64), field
        assert np.isfinite(values).all(), field
    assert (schedule_arrays(schedule).betas > 0).all() and (
        schedule_arrays(schedule).betas <= 1
    ).all()
    assert (np.diff(schedule.log_alpha_bar) < 0).all()
    np.testing.assert_array_equal(schedule.timesteps, np.arange(num_timesteps))


def test_extreme_betas_stay_finite():
    for start, end in ((1e-300, 1e-300), (0.5, 0.9999999), (0.9, 1e-12)):
        for field, values in arrays(make_schedule("linear", 1000, start, end)).items():
            assert np.isfinite(values).all(), (field, start, end)


def test_one_step_posterior_is_the_clean_image():
    schedule = make_schedule("linear", 1, 0.7, 0.7)
    assert schedule_arrays(schedule).posterior_mean_coef_x0 == 1
    assert schedule_arrays(schedule).posterior_mean_coef_xt == 0
    assert schedule_arrays(schedule).posterior_variance == 0
    np.testing.assert_allclose(
        schedule_arrays(schedule).fixed_large_log_variance, math.log(0.7), rtol=1e-6
    )
    np.testing.assert_allclose(
        schedule_arrays(schedule).posterior_log_variance_clipped, math.log(0.7), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin"}, "unknown schedule 'cosin'.*linear.*Did you mean 'cosine'"),
        ({"num_timesteps": 0}, "num_timesteps is 0; .*at least 1"),
        ({"num_timesteps": -5}, "num_timesteps is -5"),
        ({"num_timesteps": True}, "num_timesteps is True"),
        ({"num_timesteps": 10.0}, "num_timesteps is 10.0"),
        ({"beta_start": 0.0}, r"beta_start is 0.0; .*\(0, 1\)"),
        ({"beta_end": 1.0}, "beta_end is 1.0"),
        ({"beta_end": -0.1}, "beta_end is -0.1"),
        ({"beta_end": math.nan}, "beta_end is nan"),
        ({"beta_end": "high"}, "beta_end is 'high'"),
        (
            {"name": "cosine", "beta_end": 0.02},
            "beta_end is 0.02, but the schedule 'cosine' has none",
        ),
        ({"name": "const", "beta_start": 0.01}, "beta_start is 0.01, but const takes beta_end"),
        (
            {"name": "jsd", "beta_start": 0.02},
            "beta_start is 0.02, but the schedule 'jsd' has none",
        ),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        # Unwrapped: the checks of types that the tests add would see some of these first.
        inspect.unwrap(make_schedule)(**{"num_timesteps": 100} | arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 99])
def test_respacing_keeps_noise_levels_and_times_of_an_even_subset(name, num_steps):
    schedule = quiet_schedule(name, 100)
    short = respace(schedule, num_steps)
    kept = short.timesteps.astype(int)
    assert short.num_timesteps == num_steps
    assert kept[-1] == 99
    assert num_steps == 1 or kept[0] == 0
    assert set(np.diff(kept)) <= {
        math.floor(99 / max(num_steps - 1, 1)),
        math.ceil(99 / max(num_steps - 1, 1)),
    }
    for field in (
        "alpha_bar",
        "sqrt_alpha_bar",
        "sqrt_one_minus_alpha_bar",
        "sqrt_recip_alpha_bar",
        "logsnr",
    ):
        np.testing.assert_array_equal(arrays(short)[field], arrays(schedule)[field][kept])
    # One step of the short chain is the product of the steps that it stands for.
    alphas = schedule_arrays(schedule).alphas.astype(float)
    starts = [0, *(kept[:-1] + 1)]
    products = [alphas[start : end + 1].prod() for start, end in zip(starts, kept, strict=True)]
    np.testing.assert_allclose(schedule_arrays(short).alphas, products, rtol=1e-5, atol=1e-15)
    assert (schedule_arrays(short).betas > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_respacing_to_all_steps_changes_nothing(name):
    schedule = make_schedule(name, 100)
    for field, values in arrays(respace(schedule, 100)).items():
        np.testing.assert_array_equal(values, arrays(schedule)[field], err_msg=field)


def test_respacing_twice_keeps_the_original_times():
    short = respace(respace(make_schedule("linear", 101), 51), 6)
    np.testing.assert_array_equal(short.timesteps, [0, 20, 40, 60, 80, 100])


@pytest.mark.parametrize("num_steps", [0, 101])
def test_respacing_refuses_other_than_1_to_T_steps(num_steps):
    with pytest.raises(InputError, match=f"num_steps is {num_steps}; .*from 1 to 100"):
        respace(make_schedule("linear", 100), num_steps)


def test_a_schedule_is_a_pytree_that_passes_through_jit():
    schedule = make_schedule("linear", 50)
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(schedule)
    np.testing.assert_allclose(doubled.log_alpha_bar, 2 * schedule.log_alpha_bar, rtol=1e-6)
    assert doubled.num_timesteps == 50
