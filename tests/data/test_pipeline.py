"""Batch k depends on (seed, k) alone, and the transforms on their arguments alone."""

import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion_jax.data import (
    batch_indices,
    batches,
    from_arrays,
    random_flip,
    to_model_range,
    to_uint8,
)
from diffusion_jax.errors import InputError


@pytest.fixture
def split():
    images = np.arange(10 * 4 * 4 * 3, dtype=np.uint32).astype(np.uint8).reshape(10, 4, 4, 3)
    return from_arrays(images, np.arange(10), tuple("abcdefghij"))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 23])
def test_batches_in_a_row_hold_each_image_once_an_epoch(batch_size):
    stream = np.concatenate([batch_indices(0, k, batch_size, 10) for k in range(60 // batch_size)])
    whole = stream[: len(stream) // 10 * 10].reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(10), (len(whole), 1)))


def test_order_differs_between_epochs_and_seeds():
    orders = {tuple(batch_indices(seed, k, 50, 50)) for seed in range(3) for k in range(3)}
    assert len(orders) == 9


def test_order_is_uniform_over_positions():
    # 2,000 draws a cell in expectation, standard deviation about 40: five of them is 200.
    counts = np.zeros((5, 5))
    for epoch in range(10_000):
        counts[np.arange(5), batch_indices(7, epoch, 5, 5)] += 1
    np.testing.assert_allclose(counts, 2000, atol=200)


def test_order_stays_what_it_was():
    # Pinned: a run must resume to the same order under any later version of NumPy.
    assert batch_indices(0, 0, 5, 10).tolist() == [0, 2, 9, 1, 8]


def test_negative_seed_is_a_seed():
    assert sorted(batch_indices(-1, 0, 10, 10)) == list(range(10))


def test_any_start_continues_the_same_sequence(split):
    whole = list(batches(split, seed=3, batch_size=4, stop=9))
    resumed = list(batches(split, seed=3, batch_size=4, start=5, stop=9))
    assert len(whole) == 9 and len(resumed) == 4
    for a, b in zip(whole[5:], resumed, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


@pytest.mark.parametrize(
    "parts",
    [
        [slice(0, 4), slice(4, 8)],
        [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)],
        [np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7])],
    ],
)
def test_global_batch_does_not_depend_on_how_processes_share_its_rows(split, parts):
    whole = next(batches(split, seed=1, batch_size=8, start=2))
    for rows in parts:
        part = next(batches(split, seed=1, batch_size=8, start=2, rows=rows))
        np.testing.assert_array_equal(part["image"], whole["image"][rows])
        np.testing.assert_array_equal(part["label"], whole["label"][rows])


def test_a_far_batch_costs_no_reading_of_those_before_it(split):
    assert next(batches(split, seed=0, batch_size=4, start=10**12))["image"].shape == (4, 4, 4, 3)


def test_images_keep_their_labels(split):
    for batch in batches(split, seed=0, batch_size=4, stop=5):
        np.testing.assert_array_equal(
            batch["image"], split.read(batch["label"].astype(int))["image"]
        )


@pytest.mark.parametrize("how", ["close", "drop", "exhaust"])
def test_reading_threads_end_with_the_iterator(split, how):
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    iterator = batches(split, seed=0, batch_size=4, stop=20)
    next(iterator)
    assert readers()
    if how == "close":
        iterator.close()
    elif how == "exhaust":
        list(iterator)
    del iterator
    # Idle threads leave as soon as they are scheduled; ten seconds is for a machine under load.
    deadline = time.monotonic() + 10
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not readers()


def test_an_error_in_a_reading_thread_reaches_the_caller(split):
    def fail(indices):
        raise OSError("gone")

    broken = type(split)(10, (4, 4, 3), (), fail)
    with pytest.raises(OSError, match="gone"):
        next(batches(broken, seed=0, batch_size=2))


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"prefetch": 0}, {"start": -1}, {"start": 3, "stop": 2}]
)
def test_impossible_sizes_are_refused_at_once(split, arguments):
    with pytest.raises(InputError):
        batches(split, **{"seed": 0, "batch_size": 2, **arguments})


def test_pixels_survive_the_way_to_the_model_and_back(compiled):
    pixels = np.arange(256, dtype=np.uint8)
    floats = compiled(to_model_range)(jnp.asarray(pixels))
    # Two float32 operations on values of at most 2 err by at most 2^-23 each.
    np.testing.assert_allclose(floats, np.linspace(-1, 1, 256), atol=2.4e-7)
    assert floats.dtype == jnp.float32
    np.testing.assert_array_equal(compiled(to_uint8)(floats), pixels)


def test_values_outside_the_range_are_clipped():
    values = jnp.array([-9.0, -1.001, 1.001, 9.0])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 255, 255])


def test_half_of_the_images_are_mirrored_and_the_others_untouched(compiled):
    images = jax.random.randint(jax.random.key(0), (1000, 2, 4, 3), 0, 256).astype(jnp.uint8)
    flipped = np.asarray(compiled(random_flip)(jax.random.key(1), images))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == np.asarray(images)[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    # The standard deviation is 16 images; five of them is 80.
    assert abs(mirrored.sum() - 500) < 80


def test_flips_do_not_depend_on_how_the_batch_is_spread():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    images = jax.random.normal(jax.random.key(0), (16, 2, 4, 3))
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    flip = jax.jit(random_flip)
    np.testing.assert_array_equal(flip(jax.random.key(1), spread), flip(jax.random.key(1), images))


@pytest.mark.filterwarnings("ignore:images are floats")
def test_pixels_get_the_models_range_and_data_that_are_floats_stay(compiled):
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(
        compiled(to_model_range)(jnp.asarray(levels)), levels / 127.5 - 1, atol=1e-7
    )
    points = np.array([-3.5, 0.25, 7.0], np.float32)
    np.testing.assert_array_equal(compiled(to_model_range)(jnp.asarray(points)), points)


U8 = np.arange(256, dtype=np.uint8)
AS_PIXELS = {
    "uint8": U8,
    "int32": U8.astype(np.int32),
    "int64": U8.astype(np.int64),
    "uint16": U8.astype(np.uint16) * 257,
}
AS_RANGE = {
    "float32": (U8 / 127.5 - 1).astype(np.float32),
    "float64": U8 / 127.5 - 1,
    "float16": (U8 / 127.5 - 1).astype(np.float16),
    "bfloat16": jnp.asarray(U8 / 127.5 - 1, jnp.bfloat16),
}


@pytest.mark.parametrize("name", [*AS_PIXELS, *AS_RANGE])
def test_every_type_of_pixels_reaches_the_models_range(name, compiled):
    pixels = (AS_PIXELS | AS_RANGE)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        floats = compiled(to_model_range)(pixels)
    assert floats.dtype == jnp.float32
    # bfloat16 and float16 have 3 and 4 digits.
    digits = {"bfloat16": 4e-3, "float16": 5e-4}.get(name, 1e-6)
    np.testing.assert_allclose(floats, U8 / 127.5 - 1, atol=digits)


def test_booleans_are_black_and_white(compiled):
    np.testing.assert_array_equal(compiled(to_model_range)(np.array([False, True])), [-1, 1])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([0, 256]), "pixels of dtype int64 go from 0 to 256; they must be in 0 to 255"),
        (np.array([-1, 3], np.int8), "go from -1 to 3"),
        (np.array([1j]), "images have dtype complex128"),
    ],
)
def test_pixels_of_no_range_are_refused(pixels, message):
    with pytest.raises(InputError, match=message):
        to_model_range(pixels)


@pytest.mark.parametrize(
    ("floats", "seen"),
    [
        (U8.astype(np.float32), "from 0 to 255"),
        (U8 / 255, r"all in \[0, 1\]"),
        (np.linspace(-3, 3, 9), "from -3 to 3"),
        (np.array([0.0, np.nan]), "from nan to nan"),
    ],
)
def test_floats_that_are_hardly_meant_for_the_models_range_are_warned_of(floats, seen):
    with pytest.warns(
        UserWarning, match=f"images are floats {seen}; they are passed to the network"
    ):
        np.testing.assert_allclose(to_model_range(floats), floats, rtol=1e-6)


def test_arrays_without_labels_have_no_classes_and_labels_without_names_are_named_by_number():
    images = np.arange(3 * 4, dtype=np.int64).reshape(3, 2, 2, 1)
    plain = from_arrays(images)
    assert (plain.num_images, plain.image_shape, plain.class_names) == (3, (2, 2, 1), ())
    batch = plain.read(np.array([2, 0, 2]))
    np.testing.assert_array_equal(batch["image"], images[[2, 0, 2]])
    assert batch["image"].dtype == np.uint8 and batch["label"].tolist() == [0, 0, 0]
    classes = from_arrays(images, np.array([2, 0, 2]))
    assert (classes.class_names, classes.class_counts) == (("0", "1", "2"), (1, 0, 2))


PIXELS = np.zeros((3, 2, 2, 1), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((PIXELS[..., 0],), r"shape \(3, 2, 2\); it must be N x H x W x C"),
        ((PIXELS.astype(np.float32),), "dtype float32; they must be integers, such as to_uint8"),
        ((PIXELS + np.int64(256),), "pixels go from 256 to 256; they must be in 0 to 255"),
        ((PIXELS - np.int64(1),), "pixels go from -1 to -1"),
        ((PIXELS, np.zeros(2, int)), r"labels have shape \(2,\) and dtype int64; they must be 3"),
        ((PIXELS, np.zeros(3)), "dtype float64; they must be 3 integers"),
        ((PIXELS, np.array([0, 1, 2]), ("a", "b")), "labels go from 0 to 2; .* in 0 to 1"),
        ((PIXELS, np.array([0, -1, 2])), "labels go from -1 to 2"),
        ((PIXELS, None, ("a", "b")), "class_names are given for 3 images without labels"),
    ],
)
def test_arrays_that_are_no_pixels_or_classes_are_refused(arrays, message):
    with pytest.raises(InputError, match=message):
        from_arrays(*arrays)
