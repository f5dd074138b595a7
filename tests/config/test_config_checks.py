"""Validation: each field by its limits, written here once more, and the fields that must fit one another."""

import math
from typing import Any

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import FIELDS, default_config, locate, validate
from diffusion_jax.errors import InputError
from diffusion_jax.options.kinds import Bool, Choice, Text

COUNT = ([1, 1000], [0, -7, 2**31, 10**12])
COUNT_OR_NONE = ([0, 1000], [-1, 2**31, 10**12])
SIZE = ([1e-6, 1e6], [0.0, 2e6, math.nan])
SHARE = ([1e-9, 0.999], [0.0, 1.0, math.nan])
SEED = ([0, 2**32 - 1], [-1, 2**32])
# Values on the edge of what is allowed, and just beyond.
LIMITS: dict[str, tuple[list[Any], list[Any]]] = {
    "seed": SEED,
    "data.image_size": COUNT,
    "data.test_fraction": ([0.0, 0.9], [-0.01, 0.91, math.nan]),
    "model.channels": ([4, 8, 128], [0, 3, 6]),
    "model.channel_mult": ([(1,), (1, 2)], [(), (0,), (1, 2.5), ("a",)]),
    "model.num_res_blocks": COUNT,
    "model.attention_resolutions": ([(), (1,), (16, 8)], [(0,), (4.5,), ("a",)]),
    "model.dropout": ([0.0, 0.99], [-0.01, 1.0]),
    "model.num_classes": ([0, 1000, "auto"], [-1, 2**31, 10**12, "all", 1.5]),
    "model.norm_groups": ([1, 32, 128], [0, 3]),  # Divisors of the default's 128 channels.
    "model.norm_eps": ([1e-12, 1.0], [0.0, 1.1]),
    "process.num_timesteps": COUNT,
    "process.beta_start": ([1e-9, 0.999], [0.0, 1.0, -0.1, 1.5]),
    "process.beta_end": ([1e-9, 0.999], [0.0, 1.0, -0.1, 1.5]),
    "process.beta_min": SIZE,
    "process.beta_max": SIZE,
    "process.sigma_min": SIZE,
    "process.sigma_max": SIZE,
    "loss.u_min": SHARE,
    "sampler.u_min": SHARE,
    "eval.u_min": SHARE,
    "loss.num_probes": COUNT,
    "loss.vlb_weight": ([0.0, 1.0], [-0.1, math.inf]),
    "loss.min_snr_gamma": ([1e-3, 1e6], [0.0, -1.0, math.inf]),
    "loss.p2_k": ([1e-3, 1e3], [0.0, 1001.0, math.nan]),
    "loss.p2_gamma": ([0.0, 10.0], [-0.1, 10.1, math.nan]),
    "loss.sigmoid_bias": ([-20.0, 20.0], [-20.1, 20.1, math.nan]),
    "optimizer.learning_rate": ([0.0, 1e9], [-1e-9, math.inf, math.nan]),
    "optimizer.warmup_steps": COUNT_OR_NONE,
    "optimizer.grad_clip": ([0.0, 1e9], [-1e-9, math.inf, math.nan]),
    "optimizer.ema_decay": ([0.0, 1.0], [-0.01, 1.01]),
    "train.num_steps": ([1, 2**31 - 1], [0, 2**31]),
    "train.batch_size": COUNT,
    "train.label_dropout": ([0.0], [-0.1, 1.1]),
    "train.accumulate": COUNT,
    "train.steps_per_dispatch": COUNT,
    "train.log_every": COUNT,
    "train.checkpoint_every": COUNT,
    "train.keep_last": COUNT,
    "train.keep_every": COUNT,
    "train.sample_every": COUNT_OR_NONE,
    "train.sample_images": COUNT,
    "train.eval_every": COUNT_OR_NONE,
    "train.bpd_every": COUNT_OR_NONE,
    "sampler.num_steps": COUNT,
    "sampler.spacing": (
        ["uniform", "leading", "trailing", "quadratic", "logsnr", "karras", (0,), (999, 0.5, -12)],
        ["unifrom", "0", "", (), (math.nan,), ("uniform",)],
    ),
    "sampler.eta": ([0.0, 0.5, 1.0], [-0.1, 1.1, math.nan]),
    "sampler.temperature": ([0.0, 0.7, 10.0], [-0.1, 10.1, math.nan]),
    "sampler.churn": ([0.0, 80.0], [-0.1, math.inf]),
    "sampler.churn_min": ([0.0, 1e9], [-0.1, math.inf]),
    "sampler.churn_max": ([0.0, 1e9], [-0.1, math.inf]),
    "sampler.churn_noise": ([0.0, 1.007], [-0.1, math.inf]),
    "sampler.corrector_steps": COUNT_OR_NONE,
    "sampler.snr": ([1e-3, 0.16, 0.999], [0.0, 1.0, math.nan]),
    "sampler.langevin_steps": COUNT,
    "sampler.langevin_step_size": ([1e-9, 1.99], [0.0, 2.0, math.nan]),
    "sampler.rtol": ([1e-7, 1.0], [0.0, 1.1, math.nan]),
    "sampler.atol": ([1e-9, 1.0], [0.0, 1.1, math.nan]),
    "sampler.max_steps": COUNT,
    "sampler.order": ([1, 3], [0, 4]),
    "sampler.dynamic_threshold": ([0.5, 0.995], [0.0, 1.0, math.nan]),
    "sampler.guidance_scale": ([0.0, 1.0, 7.5], [-0.1, math.inf]),
    "sampler.guidance_interval": ([(0.2, 5.0)], [(), (-1.0, 2.0), ("a",)]),
    "sampler.guidance_rescale": ([0.0, 1.0], [-0.1, 1.1]),
    "sample.num_images": COUNT,
    "sample.batch_size": COUNT,
    "sample.formats": ([("npz",), ("png", "array_record")], [(), ("jpg",)]),
    "sample.seed": SEED,
    "sample.labels": ([], [(), (-1,), (1.5,), ("",), (None,)]),
    "sample.step": COUNT_OR_NONE,
    "sample.shared_t": ([(0,), (999, 0.5, -12)], [(), (math.nan,), ("cat",)]),
    "edit.images": ([("a.png",), ("a.png", "b")], [(), (1,)]),
    "edit.factor": ([2, 8], [0, 1]),
    "edit.start_t": ([0, 0.5, -3.9], [math.nan, math.inf]),
    "edit.resamplings": COUNT,
    "edit.jump": COUNT,
    "edit.times": ([(0,), (999, 0.5, -12)], [(), (math.nan,), ("cat",)]),
    "edit.num_between": COUNT,
    "edit.iterations": COUNT_OR_NONE,
    "eval.num_images": COUNT,
    "eval.batch_size": COUNT,
    "eval.metrics": ([("bpd",), ("ode_bpd", "bpd")], [(), ("fid",)]),
    "eval.seed": SEED,
    "eval.step": COUNT_OR_NONE,
    "eval.num_steps": COUNT,
    "eval.spacing": (
        ["uniform", "leading", "trailing", "quadratic", "logsnr", "karras", (0,), (999, 0.5, -12)],
        ["unifrom", "0", "", (), (math.nan,), ("uniform",)],
    ),
    "model.remat": (
        ["none", "blocks", ("conv",), ("conv", "attention")],
        ["conv", "all", "", (), ("norm",), True],
    ),
    "eval.num_terms": COUNT,
    "eval.num_dequantizations": COUNT,
    "eval.num_probes": COUNT,
    "eval.rtol": ([1e-7, 1.0], [0.0, 1.1, math.nan]),
    "eval.atol": ([1e-9, 1.0], [0.0, 1.1, math.nan]),
    "eval.max_steps": COUNT,
    "train.step_timeout": ([0.0, 3600.0], [-1.0, math.inf, math.nan]),
    "mesh.data": ([-1, 1], [-2]),
    "mesh.fsdp": ([1, 8], [0, -1]),
}


def with_value(name: str, value: Any) -> ConfigDict:
    config = default_config()
    group, leaf = locate(config, name)
    group[leaf] = value
    return config


def test_every_field_with_a_range_has_its_limits_tested() -> None:
    others = {name for name, f in FIELDS.items() if isinstance(f.kind, (Bool, Choice, Text))}
    assert set(LIMITS) == FIELDS.keys() - others


@pytest.mark.parametrize("name", LIMITS)
def test_a_value_is_accepted_within_its_limits_and_refused_beyond_by_name(name: str) -> None:
    inside, outside = LIMITS[name]
    for value in inside:
        validate(with_value(name, value))
    for value in outside:
        with pytest.raises(InputError) as error:
            validate(with_value(name, value))
        assert str(error.value).startswith(f"{name} is {value!r}; it must ")


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if isinstance(f.kind, Choice)])
def test_a_choice_is_refused_unless_it_is_known(name: str) -> None:
    kind = FIELDS[name].kind
    assert isinstance(kind, Choice)
    for choice in kind.names:
        validate(with_value(name, choice))
    with pytest.raises(InputError) as error:
        validate(with_value(name, kind.names[0] + "x"))
    for fragment in (name, repr(kind.names[0] + "x"), *kind.names, "Did you mean"):
        assert fragment in str(error.value)


def test_a_data_set_that_tfds_has_prepared_is_a_choice() -> None:
    validate(with_value("data.name", "tfds:my set"))
    with pytest.raises(InputError, match="data.name is 'tfds:'; it must be .* tfds:NAME"):
        validate(with_value("data.name", "tfds:"))


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if isinstance(f.kind, Text)])
def test_text_is_anything_but_empty(name: str) -> None:
    validate(with_value(name, "x"))
    with pytest.raises(InputError, match=f"^{name} is ''; it must be "):
        validate(with_value(name, ""))


@pytest.mark.parametrize("name", FIELDS)
def test_only_a_field_that_is_unset_by_default_may_be_none(name: str) -> None:
    config = with_value(name, None)
    if FIELDS[name].default is None:
        validate(config)
    else:
        with pytest.raises(InputError, match=f"^{name} is None; it must be set$"):
            validate(config)


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if isinstance(f.kind, Bool)])
def test_a_switch_is_true_or_false(name: str) -> None:
    """A ConfigDict refuses another type, unless a file makes a new one."""
    for value in (True, False):
        validate(with_value(name, value))
    config = default_config()
    group, leaf = locate(config, name)
    group.unlock()
    del group[leaf]
    group[leaf] = "maybe"
    with pytest.raises(InputError, match=f"^{name} is 'maybe'; it must be true or false$"):
        validate(config)


def test_labels_must_be_classes_of_the_model() -> None:
    config = with_value("sample.labels", (0, 9))
    with pytest.raises(InputError, match=r"sample.labels is \(0, 9\), but .* unconditional"):
        validate(config)
    config.model.num_classes = 9
    with pytest.raises(InputError, match=r"sample.labels is \(0, 9\); .* from 0 to 8"):
        validate(config)
    config.model.num_classes = 10
    validate(config)
