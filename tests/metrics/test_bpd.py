"""Sums over parts against means of whole arrays; restarts; what is not finite is counted and never averaged."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow_after

from diffusion_jax.data.split import Split, from_arrays
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.errors import InputError
from diffusion_jax.keys import indexed, stream
from diffusion_jax.likelihood.vlb import VLB, drawn_shares
from diffusion_jax.metrics import VariationalBits, make_measure
from diffusion_jax.metrics.bound_totals import BitsPerDim
from diffusion_jax.models.denoiser import Denoise, complete
from diffusion_jax.parallel.sharding import make_mesh
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule

N, IMAGES = 8, 11
PROCESS = DDPM(make_schedule("linear", N, 0.01, 0.6))
GRID = make_grid(PROCESS)
PIXELS = np.random.default_rng(0).integers(256, size=(IMAGES, 2, 2, 1)).astype(np.uint8)
SPLIT = from_arrays(PIXELS, np.arange(IMAGES) % 3, ("a", "b", "c"))
SEED = 3


def denoiser(params: Any, labels: Any) -> Denoise:
    """A denoiser that is off by the label."""

    def denoise(x_t, point):
        off = 0.0 if labels is None else 0.05 * labels[:, None, None, None]
        x0_hat = jnp.tanh(params * x_t) + off
        return complete(point, x0_hat, eps_from_x0(point, x_t, x0_hat))

    return denoise


METRIC = VariationalBits(PROCESS, denoiser, SEED, clip=False)


def measure(
    folder: Path | None = None,
    *,
    metric: VariationalBits = METRIC,
    split: Split = SPLIT,
    devices: int = 1,
    num_images: int = IMAGES,
    batch_size: int = 4,
    conditional: bool = True,
    done: Any = None,
) -> BitsPerDim:
    run = make_measure(
        metric,
        split,
        make_mesh(devices),
        conditional=conditional,
        num_images=num_images,
        batch_size=batch_size,
    )
    return run(1.1, folder, done)


@pytest.fixture(scope="module")
def whole() -> VLB:
    """The bound of all images at once, without the code under test."""
    x0 = to_model_range(jnp.asarray(PIXELS))
    keys = indexed(stream(SEED, "bound"), jnp.arange(IMAGES))
    return jax.jit(METRIC.bound)(1.1, x0, jnp.arange(IMAGES) % 3, keys)


def test_the_figures_are_the_means_over_the_images_with_their_standard_errors(whole: VLB) -> None:
    result = measure()
    for name, values in {
        "total": whole.total,
        "rate": whole.rate,
        "prior": whole.prior,
        "distortion": whole.distortion,
    }.items():
        estimate, values = getattr(result, name), np.asarray(values, float)
        # float32 sums of 8 terms.
        np.testing.assert_allclose(estimate.value, values.mean(), rtol=1e-5, err_msg=name)
        expected = np.sqrt(np.var(values, ddof=1) / IMAGES)
        np.testing.assert_allclose(estimate.stderr, expected, rtol=1e-3, atol=1e-9, err_msg=name)
    terms = np.asarray(whole.terms, float)
    np.testing.assert_allclose(result.terms, terms.mean(1), rtol=1e-5)
    np.testing.assert_allclose(
        result.terms_stderr, terms.std(1, ddof=1) / np.sqrt(IMAGES), rtol=1e-3
    )
    np.testing.assert_allclose(result.x0_mse, np.mean(whole.x0_mse, 1), rtol=1e-5)
    np.testing.assert_allclose(result.eps_mse, np.mean(whole.eps_mse, 1), rtol=1e-5)
    assert result.num_images == IMAGES and (result.count == IMAGES).all()


def test_the_rmse_is_in_gray_levels_and_its_error_is_that_of_resampled_images(whole, rng) -> None:
    result, errors = measure(), np.asarray(whole.x0_mse[-1], float)
    # An error of 1 in [-1, 1] is one of 127.5 gray levels.
    np.testing.assert_allclose(result.rmse.value, 127.5 * np.sqrt(errors.mean()), rtol=1e-5)
    resampled = errors[rng.integers(IMAGES, size=(4000, IMAGES))].mean(1)
    # The bootstrap divides by n, not n - 1, and the root bends.
    spread = np.std(127.5 * np.sqrt(resampled)) * np.sqrt(IMAGES / (IMAGES - 1))
    np.testing.assert_allclose(result.rmse.stderr, spread, rtol=0.1)


@pytest.mark.parametrize(
    ("devices", "batch_size"), slow_after(1, [(1, 11), (1, 3), (4, 5), (8, 100)])
)
def test_neither_devices_nor_batches_change_the_figures(devices: int, batch_size: int) -> None:
    one, other = measure(), measure(devices=devices, batch_size=batch_size)
    np.testing.assert_allclose(other.terms, one.terms, rtol=1e-5)
    np.testing.assert_allclose(other.total, one.total, rtol=1e-5)


def test_labels_are_given_to_a_conditional_model_alone() -> None:
    assert measure().total != measure(conditional=False).total


def test_a_stratified_sample_of_the_terms_has_the_mean_of_all(whole: VLB) -> None:
    pixels = np.repeat(PIXELS[:1], 3000, axis=0)

    result = measure(
        metric=dataclasses.replace(METRIC, num_terms=4),
        split=from_arrays(pixels),
        num_images=3000,
        batch_size=3000,
    )
    everything = measure(split=from_arrays(pixels), num_images=3000, batch_size=3000)
    error = np.hypot(result.total.stderr, everything.total.stderr)
    assert abs(result.total.value - everything.total.value) < 3 * error
    np.testing.assert_allclose(result.count[:-1], 3000 * 3 * drawn_shares(GRID), rtol=0.1)
    assert result.count[-1] == 3000  # L_0 is always there.
    errors = np.hypot(result.terms_stderr, everything.terms_stderr)
    assert (np.abs(result.terms - everything.terms) < 4 * errors).all()


# ---- restarts ----------------------------------------------------------------------------------------


def reads(split: Split) -> tuple[Split, list[int]]:
    """Returns a split that notes which images are read."""
    seen: list[int] = []

    def read(indices: np.ndarray) -> Any:
        seen.extend(indices.tolist())
        return split.read(indices)

    return Split(split.num_images, split.image_shape, split.class_names, read), seen


def test_a_second_start_measures_only_what_is_missing_and_ends_the_same(tmp_path: Path) -> None:
    told: list[int] = []
    whole = measure(tmp_path, done=told.append)
    assert told == [4, 4, 3]
    split, seen = reads(SPLIT)
    again = measure(tmp_path, split=split, batch_size=2, done=told.append)
    assert seen == [] and sum(told[3:]) == IMAGES and again.total == whole.total
    parts = sorted(tmp_path.glob("*.npz"))
    parts[1].unlink()  # As if killed before it was written,
    parts[2].write_bytes(parts[2].read_bytes()[:500])  # another one damaged,
    parts[0].write_bytes(b"")  # and one emptied by a crash of the machine.
    again = measure(tmp_path, split=split, batch_size=2)
    assert set(seen) == set(range(IMAGES))
    np.testing.assert_allclose(again.terms, whole.terms, rtol=1e-5)
    np.testing.assert_allclose(again.total, whole.total, rtol=1e-5)


WRONG_PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "repeated images": lambda part: {"indices": part["indices"][[0, 0, 2, 3]]},
    "negative images": lambda part: {"indices": part["indices"] - 9},
    "no images": lambda part: {name: value[..., :0] for name, value in part.items() if value.ndim},
    "images as floats": lambda part: {"indices": part["indices"].astype(float)},
    "images in rows": lambda part: {"indices": part["indices"][:, None]},
    "counts as floats": lambda part: {"count": part["count"].astype(float)},
    "negative counts": lambda part: {"count": -part["count"]},
    "too few terms": lambda part: {"count": part["count"] * 0},
    "fewer values than images": lambda part: {"rate": part["rate"][:2]},
    "values as text": lambda part: {"prior": part["prior"].astype(str)},
    "another number of steps": lambda part: {"terms": part["terms"][:-1]},
    "sums that are no numbers": lambda part: {"terms": part["terms"] * np.nan},
    "another array": lambda part: {"more": part["rate"]},
}


@pytest.mark.parametrize("wrong", slow_after(4, WRONG_PARTS))
def test_a_part_that_cannot_have_been_measured_is_measured_again(
    tmp_path: Path, wrong: str
) -> None:
    whole = measure(tmp_path)
    first = min(tmp_path.glob("*.npz"))
    with np.load(first) as arrays:
        part = dict(arrays)
    np.savez(first, **{**part, **WRONG_PARTS[wrong](part)})
    split, seen = reads(SPLIT)
    again = measure(tmp_path, split=split)
    assert set(seen) == {0, 1, 2, 3} and again.num_images == IMAGES
    np.testing.assert_allclose(again.total, whole.total, rtol=1e-6)


def test_more_images_add_to_those_that_were_measured_and_fewer_take_whole_parts(
    tmp_path: Path,
) -> None:
    measure(tmp_path, num_images=8)
    split, seen = reads(SPLIT)
    assert measure(tmp_path, split=split).num_images == IMAGES
    assert set(seen) == {8, 9, 10}
    seen.clear()
    fewer = measure(tmp_path, split=split, num_images=6)
    assert set(seen) == {4, 5} and fewer.num_images == 6
    np.testing.assert_allclose(fewer.total, measure(num_images=6).total, rtol=1e-5)


# ---- what is not finite ------------------------------------------------------------------------------


def test_terms_that_are_not_finite_are_counted_by_step_and_spoil_the_total_alone() -> None:
    class Broken(VariationalBits):
        def bound(self, params: Any, x0: Any, *rest: Any, **options: Any) -> VLB:
            result = super().bound(params, x0, *rest, **options)
            bad = (result.steps == 5) & (x0[None, :, 0, 0, 0] > 0)
            return result._replace(terms=jnp.where(bad, jnp.inf, result.terms))

    broken = Broken(PROCESS, denoiser, SEED, clip=False)
    result, sound = measure(metric=broken), measure()
    bad = int((PIXELS[:, 0, 0, 0] > 127).sum())
    assert 0 < bad < IMAGES
    np.testing.assert_array_equal(result.not_finite, np.where(np.arange(N) == 5, bad, 0))
    assert (
        np.isnan(result.terms[5]) and np.isnan(result.total.value) and np.isnan(result.rate.value)
    )
    others = np.arange(N) != 5
    np.testing.assert_allclose(result.terms[others], sound.terms[others], rtol=1e-6)
    assert result.distortion == sound.distortion and result.prior == sound.prior


def test_a_split_without_images_is_refused() -> None:
    empty = from_arrays(PIXELS[:0])
    with pytest.raises(InputError, match="has no images"):
        measure(split=empty)
