"""The kernel distance and its standard error."""

import numpy as np
import pytest
from slow import slow

from diffusion_jax.errors import InputError
from diffusion_jax.metrics import kid
from diffusion_jax.metrics.kid import kernel_distance


def test_it_is_the_mean_of_the_kernel_over_pairs_of_different_images(rng: np.random.Generator):
    """All images in one subset, by plain loops."""
    x, y = rng.normal(size=(2, 24, 3))
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    within = sum(
        kernel(z[i], z[j]) for z in (x, y) for i in range(24) for j in range(24) if i != j
    ) / (24 * 23)
    between = np.mean([kernel(a, b) for a in x for b in y])
    found = kernel_distance(x, y, num_subsets=1)
    assert found.value == pytest.approx(within - 2 * between, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, slow(0.3)])
def test_the_standard_error_is_the_spread_over_draws_also_of_equal_distributions(
    rng: np.random.Generator, shift: float
):
    found = [
        kernel_distance(
            rng.normal(size=(200, 5)) + shift,
            rng.normal(size=(300, 5)),
            num_subsets=4,
            subset_size=150,
            seed=i,
        )
        for i in range(250)
    ]
    values, errors = np.array(found).T
    # A spread of 250 draws is known to 5 %, of skewed ones to 10 %.
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)
    if shift == 0.0:
        assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
        assert (abs(values) < 2 * errors).mean() > 0.92


def test_the_variances_of_the_decomposition_are_those_of_a_known_kernel(
    rng: np.random.Generator,
):
    """A kernel f(a) + f(b) + g(a) g(b) of standard normal f and g: its second order is the last term, of variance 1."""
    f, g = rng.normal(size=(2, 2000))
    kernel = f[:, None] + f[None, :] + g[:, None] * g[None, :]
    assert kid._second_order(kernel) == pytest.approx(
        1, rel=0.1
    )  # 2,000 g² have a mean of 1 to 3 %.
    # A term of one image's own drops out, whatever its size.
    assert kid._second_order(kernel + 100 * (f[:, None] + f[None, :])) == pytest.approx(
        kid._second_order(kernel), rel=1e-6
    )
    first, second = np.array([2.0, 3.0]), np.array([5.0, 7.0, 11.0])
    by_hand = 8 / 10 + 12 / 40 + 10 / 100 + 14 / 1600 + 44 / 400
    assert kid._variance(first, second, 10, 40) == pytest.approx(by_hand, rel=1e-12)


def test_more_subsets_lessen_the_error_no_further_than_the_images_allow(rng: np.random.Generator):
    x, y = rng.normal(size=(2, 400, 5))
    few, many, all_of_them = (
        kernel_distance(x + 0.3, y, num_subsets=n, subset_size=size).stderr
        for n, size in ((2, 50), (50, 50), (1, 400))
    )
    assert few > many > 0.8 * all_of_them


def test_too_few_images_and_other_features_are_refused(rng: np.random.Generator):
    x = rng.normal(size=(30, 5))
    with pytest.raises(InputError, match="20 images or more of each set, not 3"):
        kernel_distance(x, x[:3])
    with pytest.raises(InputError, match="5 features, but the reference has 4"):
        kernel_distance(x, x[:, :4])
