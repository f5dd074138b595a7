"""Networks of EDM: what names and shapes say, preconditionings, pickles of which nothing runs, and foreign files."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import SOURCES, edm
from diffusion_jax.main import main
from diffusion_jax.models.networks import preset

FIXTURES = Path(__file__).parent / "fixtures"
DDPMPP = FIXTURES / "edm_tiny_ddpmpp/model.safetensors"
ADM = FIXTURES / "edm_tiny_adm/model.safetensors"


def changed(tmp_path: Path, source: Path = DDPMPP, **tensors: Any) -> Path:
    """Returns a copy of a file with other tensors; None: without it."""
    kept = {**load_file(source), **tensors}
    path = tmp_path / "changed.safetensors"
    save_file({name: np.array(value) for name, value in kept.items() if value is not None}, path)
    return path


def shapes(width: int, mults: tuple[int, ...], blocks: int, **more: tuple[int, ...]) -> Any:
    """Returns the tensors, as far as options are read from them, of EDM's CIFAR-10 networks."""
    made: dict[str, Any] = {"enc.32x32_conv.weight": (width, 3, 3, 3)}
    for level, mult in enumerate(mults):
        size = 32 >> level
        for block in range(blocks):
            name = f"enc.{size}x{size}_block{block}"
            made[f"{name}.conv1.weight"] = (width * mult, width * mult, 3, 3)
            if size == 16:
                made[f"{name}.qkv.weight"] = (3 * width * mult, width * mult, 1, 1)
    made |= {name.replace("__", "."): shape for name, shape in more.items()}
    return {name: np.broadcast_to(np.float32(1), shape) for name, shape in made.items()}


@pytest.mark.parametrize("name", ["edm_ddpmpp", "edm_ncsnpp"])
def test_the_published_networks_are_their_presets(name):
    more: Any = dict(map_layer0__weight=(512, 128))
    if name == "edm_ncsnpp":
        more = dict(map_layer0__weight=(512, 256), map_noise__freqs=(128,))
        more["enc__16x16_aux_residual__weight"] = (256, 3, 3, 3)
    tensors = shapes(128, (2, 2, 2), 4, **more)
    taps = np.array([1, 3, 3, 1]) / 8 if name == "edm_ncsnpp" else np.array([1, 1]) / 2
    tensors["enc.16x16_down.conv0.resample_filter"] = np.outer(taps, taps)[None, None]
    fields, shape = edm.network_fields(tensors)
    expected = {"num_classes": 0, "embedding_width": 512, "class_input": "time", **preset(name)}
    expected |= {"time_features": more["map_layer0__weight"][1], "norm_eps": 1e-6}
    for option in ("fir", "input_pyramid", "output_pyramid", "time_embedding"):
        expected.setdefault(option, {"fir": (), "time_embedding": "ddpm"}.get(option, "none"))
    assert shape == (32, 32, 3)
    assert fields == {k: v for k, v in expected.items() if k != "dropout"}


def test_classes_are_rows_and_the_last_one_is_none():
    for path, has_bias in ((DDPMPP, True), (ADM, False)):
        stored = {k: np.asarray(v, np.float32) for k, v in load_file(path).items()}
        weight = stored["model.map_label.weight"]
        rows = edm.read(path).params["class"]["embedding"]
        # What their linear maps make of a one-hot vector, and of zeros.
        one_hot = np.eye(weight.shape[1] + 1, weight.shape[1], dtype=np.float32)
        expected = one_hot @ weight.T
        if has_bias:
            expected = expected * np.sqrt(4) + stored["model.map_label.bias"]
        np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_settings_and_tensors_say_the_preconditioning():
    assert edm.read(DDPMPP).fields["process.prediction"] == "edm"
    assert "--precond" in edm.read(DDPMPP).notes[0]
    assert edm.read(DDPMPP, "--sigma_data 0.25").fields["process.sigma_data"] == 0.25
    variance_exploding = edm.read(DDPMPP, "--precond=ve").fields
    assert variance_exploding["process.inputs"] == "ve"
    assert variance_exploding["process.sigma_max"] == 100
    assert edm.read(DDPMPP, "--precond vp").fields["process.beta_max"] == 20
    assert edm.read(ADM).fields["process.schedule"] == "cosine"
    assert (
        edm.read(ADM).fields["process.num_timesteps"] == 1000
    )  # 1001 levels, of which the last is 0.
    assert not any("--precond" in note for note in edm.read(ADM).notes)


def test_what_is_left_out_is_said():
    assert any("map_augment is left out" in note for note in edm.read(DDPMPP).notes)
    assert any("dropout" in note for note in edm.read(ADM).notes)
    assert not any("map_augment" in note for note in edm.read(ADM).notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("--precond flow", "--precond is 'flow'; it must be one of edm, vp, ve, iddpm"),
        ("--precond iddpm", "--precond is iddpm, but the network has as many outputs as inputs"),
        ("--precon vp", "unknown flag --precon in --source_settings. Did you mean 'precond'?"),
        ("--precond vp --sigma_data 0.3", "--sigma_data is for --precond edm, not vp"),
        ("--sigma_data x", "it must be a number"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError) as error:
        edm.read(DDPMPP, settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.enc.4x4_block0.conv0.bias": None}, "it has not enc.4x4_block0.conv0.bias"),
        ({"model.enc.9x8_x.weight": np.zeros(2)}, "it has enc.9x8_x.weight (2,) besides"),
        ({"model.enc.2x2_x.weight": np.zeros(2)}, "it has not model.enc.2x2_block0.conv1.weight"),
        ({"model.enc.3x3_x.weight": np.zeros(2)}, "its feature maps are [8, 4, 3]"),
        ({"model.map_layer1.bias": np.zeros(3)}, "map_layer1.bias has the shape (3,)"),
        ({"model.map_layer0.weight": None}, "it holds no network of EDM"),
        ({"model.enc.8x8_conv.weight": None}, "it has not model.enc.8x8_conv.weight"),
    ],
)
def test_tensors_of_another_network_are_named(tmp_path, tensors, message):
    with pytest.raises(InputError) as error:
        edm.read(changed(tmp_path, **tensors))
    assert message in str(error.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(DDPMPP.read_bytes()[:-100])
    with pytest.raises(InputError, match="does not hold weights"):
        edm.read(path)
    path.write_bytes(DDPMPP.read_bytes()[:100])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        edm.fits(path)


class Attack:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("network.pkl", "nothing of it is run; docs/import_export.md has the lines with which"),
        ("network.pt", "does not hold weights"),
        ("network.pth", "does not hold weights"),
    ],
)
def test_nothing_of_a_pickle_runs(tmp_path, capsys, name, message):
    path, marker, workdir = tmp_path / name, tmp_path / "marker", tmp_path / "run"
    path.write_bytes(pickle.dumps({"ema": Attack(marker)}, 2))
    flags = [f"--source={path}", f"--workdir={workdir}"]
    if name.endswith(".pth"):
        flags.append("--source_settings=ve/cifar10_ncsnpp")
    assert main(["--mode=import", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    for source in SOURCES.values():
        with pytest.raises((InputError, OSError)):
            source.make(path=path, settings="")
    assert not marker.exists() and not workdir.exists()
    pickle.loads(path.read_bytes())  # The marker works.
    assert marker.exists()
