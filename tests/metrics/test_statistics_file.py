"""Files of statistics and images, as the field has them."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.features import Extractor
from diffusion_jax.metrics.moments import statistics_of
from diffusion_jax.metrics.statistics_file import read_statistics_or_images, write_statistics

EXTRACTOR = Extractor("linear", None, lambda params, images: images, 5, "as they are", "a" * 64)


def test_what_is_written_is_read_back_with_its_makers_and_by_pytorch_fid(
    tmp_path: Path, rng: np.random.Generator
):
    statistics = statistics_of(rng.normal(size=(9, 5)))
    write_statistics(tmp_path / "s.npz", statistics, EXTRACTOR)
    found = read_statistics_or_images(tmp_path / "s.npz", "eval.reference")
    assert found.statistics is not None and found.images is None
    np.testing.assert_array_equal(found.statistics.mean, statistics.mean)
    np.testing.assert_array_equal(found.statistics.cov, statistics.cov)
    assert found.statistics.num_images == 9
    assert found.made_by == ("linear", "a" * 64, "as they are")
    with np.load(tmp_path / "s.npz") as file:  # As pytorch-fid does.
        assert file["mu"].shape == (5,) and file["sigma"].shape == (5, 5)


def test_adms_batches_have_images_and_statistics(tmp_path: Path, rng: np.random.Generator):
    images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.ones(2))
    found = read_statistics_or_images(tmp_path / "adm.npz", "eval.reference")
    assert found.images is not None and found.statistics is not None
    np.testing.assert_array_equal(found.images.read(np.arange(4))["image"], images)
    assert found.made_by == ("", "", "")


def test_a_covariance_of_low_rank_is_read_though_rounding_leaves_eigenvalues_below_zero(
    tmp_path: Path, rng: np.random.Generator
):
    cov = np.cov(rng.normal(size=(3, 20)).astype(np.float32), rowvar=False).astype(np.float32)
    assert np.linalg.eigvalsh(cov)[0] < 0
    np.savez(tmp_path / "s.npz", mu=np.zeros(20), sigma=cov)
    assert read_statistics_or_images(tmp_path / "s.npz", "eval.reference").statistics is not None
    np.savez(tmp_path / "zero.npz", mu=np.zeros(2), sigma=np.zeros((2, 2)))  # Of one image.
    assert read_statistics_or_images(tmp_path / "zero.npz", "eval.reference").statistics is not None


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": np.zeros(3)}, "holds x; it must hold mu and sigma, or images as images or arr_0"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"sigma float64 of shape \(2, 2\)"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "mu is int64"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not all numbers .* are finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 5], [0, 1.0]])}, "not symmetric"),
        ({"mu": np.zeros(4), "sigma": np.diag([1, 1, -5, 1.0])}, "eigenvalues from -5 to 1, so it"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "eigenvalues from -1 to -1, so it"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "images have dtype float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, r"images have shape \(2, 4, 4\)"),
    ],
)
def test_wrong_contents_are_refused_in_one_line(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
):
    np.savez(tmp_path / "f.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=message) as raised:
        read_statistics_or_images(tmp_path / "f.npz", "eval.reference")
    assert str(raised.value).startswith("eval.reference: ")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path):
    (tmp_path / "f.npz").write_text("mu")
    with pytest.raises(InputError, match=r"cannot read .*f.npz: it is not an .npz file"):
        read_statistics_or_images(tmp_path / "f.npz", "eval.reference")
