"""Weights of extractors: which files are taken, and what is said of the others."""

import hashlib
import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import InputError
from diffusion_jax.features.weights import Published, load_weights

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1.5, -2], np.float64),
}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path):
    """A published file, which `file:` addresses reach without a network."""
    path = tmp_path / "server" / "net.npz"
    path.parent.mkdir()
    np.savez(path, allow_pickle=False, **TENSORS)
    return Published(path.name, path.as_uri(), path.stat().st_size, sha256(path)), path


def expect_tensors(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, TENSORS[name])


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        ("npz", np.float32),
        ("npz", np.float16),  # It cannot hold bfloat16.
        ("safetensors", np.float32),
        ("safetensors", np.float16),
        ("safetensors", ml_dtypes.bfloat16),
    ],
)
def test_converted_files_are_taken_and_identified_by_their_own_checksum(
    source, tmp_path, suffix, dtype
):
    path = tmp_path / f"converted.{suffix}"
    tensors = {name: tensor.astype(dtype) for name, tensor in TENSORS.items()}
    if suffix == "npz":
        np.savez(path, allow_pickle=False, more=np.zeros(2), **tensors)
    else:
        save_file({**tensors, "more": np.zeros(2)}, path)
    with pytest.warns(UserWarning, match=f"{path} are not verified to be the published ones"):
        found, checksum = load_weights(source[0], str(path), tmp_path, SHAPES)
    expect_tensors(found)
    assert checksum == sha256(path)
    assert not source[0].is_of(checksum)


def test_the_published_file_is_verified_under_any_name(source, tmp_path):
    published, server = source
    path = server.rename(tmp_path / "mine.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, checksum = load_weights(published, str(path), tmp_path, SHAPES)
    expect_tensors(found)
    assert published.is_of(checksum)


def test_the_published_file_is_downloaded_once(source, tmp_path):
    published, server = source
    found, checksum = load_weights(published, None, tmp_path, SHAPES)
    expect_tensors(found)
    assert checksum == published.sha256
    server.unlink()
    expect_tensors(load_weights(published, None, tmp_path, SHAPES)[0])


def test_without_a_network_one_line_says_what_to_get_and_what_to_set(source, tmp_path):
    published, server = source
    server.unlink()
    with pytest.raises(InputError, match="get net.npz by hand and set eval.weights to it") as error:
        load_weights(published, None, tmp_path, SHAPES)
    assert published.url in str(error.value)
    assert "\n" not in str(error.value)


def test_a_download_that_is_another_file_is_refused_and_not_kept(source, tmp_path):
    published, server = source
    server.write_bytes(b"<html>moved</html>")
    with pytest.raises(InputError, match="is not the published net.npz"):
        load_weights(published, None, tmp_path, SHAPES)
    assert not (tmp_path / "features" / "net.npz").exists()


def test_another_file_of_the_published_name_is_refused(source, tmp_path):
    published, server = source
    other = tmp_path / "net.npz"
    np.savez(other, allow_pickle=False, **{n: t + 1 for n, t in TENSORS.items()})
    with pytest.raises(InputError, match="is not the published net.npz .* bytes, sha256"):
        load_weights(published, str(other), tmp_path, SHAPES)
    expect_tensors(load_weights(published, str(server), tmp_path, SHAPES)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": None}, "has no tensor a.bias"),
        (
            {"a.weight": np.zeros((3, 2), np.float32)},
            r"a.weight .*shape \(3, 2\).*must be \(2, 3\)",
        ),
        ({"a.bias": np.zeros(2, np.int64)}, "a.bias .* is of int64"),
        ({"a.bias": np.array([1.5 + 1j, -2])}, "a.bias .* is of complex128"),
        ({"a.bias": np.zeros(2, "M8[s]")}, "a.bias .* is of datetime64"),
        ({"a.bias": np.array([np.nan, 1], np.float32)}, "a.bias .* is not finite"),
    ],
)
def test_a_tensor_that_is_missing_or_misshapen_is_named(source, tmp_path, change, message):
    path = tmp_path / "other.npz"
    tensors = {n: t for n, t in {**TENSORS, **change}.items() if t is not None}
    np.savez(path, allow_pickle=False, **tensors)
    with pytest.raises(InputError, match=message):
        load_weights(source[0], str(path), tmp_path, SHAPES)


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors", "txt"])
@pytest.mark.parametrize("content", [b"", b"text\n", b"<!DOCTYPE html>", b"\x80\2}."])
def test_what_does_not_hold_weights_is_refused_in_one_line(source, tmp_path, suffix, content):
    path = tmp_path / f"wrong.{suffix}"
    path.write_bytes(content)
    expected = (
        "weights are read from files named .pth" if suffix == "txt" else "does not hold weights"
    )
    with pytest.raises(InputError, match=expected) as error:
        load_weights(source[0], str(path), tmp_path, SHAPES)
    assert "\n" not in str(error.value)


def test_a_file_in_the_home_folder_is_found(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(source[1].parent))
    expect_tensors(load_weights(source[0], "~/net.npz", tmp_path, SHAPES)[0])


@pytest.mark.parametrize("name", ["folder.pth", "missing.pth"])
def test_a_folder_or_nothing_in_the_place_of_a_file_is_refused(source, tmp_path, name):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(InputError, match=f"{name}.*directory.* set eval.weights to the file net"):
        load_weights(source[0], str(tmp_path / name), tmp_path, SHAPES)
