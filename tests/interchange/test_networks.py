"""Imported networks against outputs of the libraries that they come from; benchmarks/parity/networks.py wrote these."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.commands.import_checkpoint import configured
from diffusion_jax.config import default_config
from diffusion_jax.experiment import build
from diffusion_jax.interchange import SOURCES, source_of
from diffusion_jax.models.networks import UNet, as_functions

FIXTURES = Path(__file__).parent / "fixtures"
CASES = {
    name: case
    for name, case in json.loads(
        (Path(__file__).parents[2] / "benchmarks/parity/networks.json").read_text()
    ).items()
    if case.get("fixture") and case["format"] in SOURCES
}


def unet_of(foreign: Any, outputs: int) -> UNet:
    fields = {k[6:]: v for k, v in foreign.fields.items() if k.startswith("model.")}
    return UNet(**{k: v for k, v in fields.items() if k != "name"}, out_channels=outputs)


def io_of(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / name / "io.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("name", CASES)
def test_an_imported_network_has_the_librarys_output(name):
    case, folder = CASES[name], FIXTURES / name
    path = folder / case.get("file", "")
    if case["format"] != "improved_diffusion":  # Its files look like guided-diffusion's.
        assert source_of(path) == case["format"]
    foreign = SOURCES[case["format"]].make(path=path, settings=case.get("settings", ""))
    io = io_of(name)
    model = as_functions(unet_of(foreign, io["output"].shape[-1]), foreign.image_shape)
    output = np.asarray(jax.jit(model.apply)(foreign.params, io["x"], io["t"], io.get("labels")))
    assert np.abs(io["output"]).max() > 0.5
    # Two float32 programs that sum in different orders: 7e-7 was seen.
    error = np.abs(output - io["output"]).max()
    np.testing.assert_allclose(error, 0, atol=1e-5 * np.abs(io["output"]).max())


@pytest.mark.parametrize("name", [name for name in CASES if "denoised" in io_of(name)])
def test_the_process_of_an_import_denoises_as_the_library(name):
    case, io = CASES[name], io_of(name)
    foreign = SOURCES[case["format"]].make(
        path=FIXTURES / name / case.get("file", ""), settings=case.get("settings", "")
    )
    config = configured(default_config(), foreign.fields, ())
    exp = build.build(config, foreign.image_shape, config.model.num_classes, foreign.class_names)
    point = exp.model.process.at(jnp.asarray(io["time"]))
    predict = jax.jit(exp.model.predict)
    x0 = np.asarray(predict(foreign.params, io["noised"], point, io.get("labels")).x0)
    # Of clean images, whose size the noise does not hide: 2e-6 was seen.
    error = np.abs(x0 - io["denoised"]).max()
    np.testing.assert_allclose(error, 0, atol=1e-5 * np.abs(io["denoised"]).max())
