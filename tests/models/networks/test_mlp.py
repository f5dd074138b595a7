"""The MLP denoiser: shapes, types, conditioning, gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.networks import MLP, Model, as_functions, count_parameters

SHAPE = (1, 1, 2)


def mlp(**changes: Any) -> Model:
    fields: dict[str, Any] = dict(channels=8, num_res_blocks=1, dropout=0.5, num_classes=3)
    return as_functions(MLP(**{**fields, **changes}), SHAPE)


@pytest.fixture(scope="module")
def params() -> Any:
    """Parameters none of which is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(mlp().init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(scope="module")
def forward() -> Any:
    return jax.jit(mlp().apply)


X = jnp.array([[0.3, -1.2], [2.0, 0.1]]).reshape(2, *SHAPE)
T = jnp.array([0.0, 41.5])
LABELS = jnp.array([0, 2])


def test_the_first_output_is_zero_and_later_ones_have_the_inputs_shape(forward, params):
    first = forward(mlp().init(jax.random.key(0)), X, T, LABELS)
    np.testing.assert_array_equal(first, 0)
    later = forward(params, X, T, LABELS)
    assert later.shape == X.shape and np.abs(later).min() > 0


def test_number_of_parameters_is_that_of_its_layers():
    d, c, classes = 2, 8, 3  # of the input, of the hidden layers
    time, block = c * c + c, 3 * (c * c + c) + 2 * c
    ends = (d * c + c) + 2 * c + (c * d + d)
    shapes = jax.eval_shape(mlp().init, jax.random.key(0))
    assert (
        count_parameters(shapes) == time + (classes + 1) * c + block + ends
    )  # A row for no class.


def test_every_parameter_has_a_gradient(params):
    # One of the images of each class, and one of none.
    x, t, labels = jnp.repeat(X, 2, axis=0), jnp.repeat(T, 2), jnp.arange(4)

    def loss(params: Any) -> Any:
        return jnp.square(mlp().apply(params, x, t, labels) - 1).mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert jnp.abs(gradient).max() > 1e-4, jax.tree_util.keystr(path)


def test_bfloat16_keeps_parameters_and_output_in_float32_and_their_values_close(forward, params):
    model = mlp(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    value, expected = jax.jit(model.apply)(params, X, T, LABELS), forward(params, X, T, LABELS)
    assert value.dtype == jnp.float32
    # Six layers, each rounded to 8 binary digits (0.4%); but not float32 in disguise.
    relative = jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)
    assert 1e-5 < relative < 0.05


def test_each_image_depends_on_its_own_time_and_class_alone(forward, params):
    base = forward(params, X, T, LABELS)
    for changed in (
        forward(params, X, T.at[1].set(40.0), LABELS),
        forward(params, X, T, LABELS.at[1].set(1)),
    ):
        np.testing.assert_array_equal(changed[0], base[0])
        assert jnp.abs(changed[1] - base[1]).max() > 1e-3


def test_the_number_of_output_channels_changes_the_last_layer_alone(params):
    model = mlp(out_channels=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.eval_shape(model.apply, shapes, X, T, LABELS).shape == (2, 1, 1, 4)
    ours, wider = (jax.tree.map(np.shape, dict(tree)) for tree in (params, shapes))
    assert ours.pop("dense_out") == {"kernel": (8, 2), "bias": (2,)}
    assert wider.pop("dense_out") == {"kernel": (8, 4), "bias": (4,)}
    assert ours == wider


def test_labels_of_no_row_give_nan(forward, params):
    for label in (-1, 4):
        output = forward(params, X, T, jnp.array([0, label]))
        assert np.isfinite(output[0]).all() and np.isnan(output[1]).all()


def test_dropout_acts_with_keys_only(forward, params):
    keys = jax.random.split(jax.random.key(0), 3)
    with_keys = [forward(params, X, T, LABELS, keys[i : i + 2]) for i in (0, 0, 1)]
    np.testing.assert_array_equal(with_keys[0], with_keys[1])
    assert jnp.abs(with_keys[0] - with_keys[2]).max() > 1e-3
    without = jax.jit(mlp(dropout=0.0).apply)(params, X, T, LABELS)
    np.testing.assert_array_equal(forward(params, X, T, LABELS), without)


def test_a_conditional_model_without_labels_is_an_error(params):
    with pytest.raises(ValueError, match="labels are missing: the network has 3 classes"):
        jax.eval_shape(mlp().apply, params, X, T)
