"""Figures of a row that are not sums over its steps, by hand."""

import jax
import pytest
from ml_collections import ConfigDict

from diffusion_jax.commands import row_figures
from diffusion_jax.config import default_config
from diffusion_jax.experiment.build import build, learning_rate_of
from diffusion_jax.experiment.training import batch_template, make_training, make_training_mesh
from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.lowered import count_flops
from diffusion_jax.training.row_figures import RowFigures, peak_memory


def test_operations_are_counted_once_and_are_a_share_of_the_peak():
    """Half a TFLOP a step, four steps a second: 2 TFLOP/s, a quarter of 8."""
    calls: list[int] = []

    def count() -> float:
        calls.append(1)
        return 0.5e12

    figures = RowFigures(lambda k: 0.1 * k, count, 8e12)
    assert figures.uncounted
    row = figures.row(11, 4.0)
    assert row == {"learning_rate": 1.0, "tflops": 2.0, "mfu": 0.25}
    assert not figures.uncounted
    assert figures.row(12, None)["mfu"] is None and len(calls) == 1


def test_what_is_not_known_is_not_in_a_row(monkeypatch: pytest.MonkeyPatch):
    assert peak_memory() is None  # Of CPUs.
    figures = RowFigures(lambda k: 0.5)
    assert not figures.uncounted and figures.row(1, 4.0) == {"learning_rate": 0.5}

    class Device:
        def __init__(self, used: int) -> None:
            self.used = used

        def memory_stats(self) -> dict[str, int]:
            return {"peak_bytes_in_use": self.used}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(9), Device(5)])
    assert figures.row(1, 4.0)["device_memory"] == 9


def small(data: int) -> ConfigDict:
    config = default_config()
    config.model.name, config.model.channels, config.model.num_res_blocks = "mlp", 128, 1
    config.train.batch_size, config.mesh.data = 64, data
    config.optimizer.warmup_steps = 10
    return config


@pytest.mark.parametrize("data", [1, 8])
def test_all_devices_together_compute_what_one_would(data: int, monkeypatch: pytest.MonkeyPatch):
    """Per image six operations a parameter of each kernel, but that no gradient goes to pixels and time."""
    chip = Chip("", {"float32": 1e12}, 1.0, 1.0, 1.0)
    monkeypatch.setattr(row_figures, "chip_of", lambda _: chip)
    exp = build(small(data), (8, 8, 1), 10)
    mesh = make_training_mesh(exp.config)
    figures = row_figures.row_figures(
        make_training(exp, mesh),
        batch_template(exp, mesh),
        learning_rate_of(exp.config),
        "float32",
    )
    row = figures.row(5, 1.0)
    assert row["learning_rate"] == pytest.approx(exp.config.optimizer.learning_rate / 2)
    kernels = 4 * 128**2 + 2 * 64 * 128
    least = 64 * (6 * kernels - 2 * (128**2 + 64 * 128))
    assert row["tflops"] is not None and row["mfu"] == pytest.approx(row["tflops"] / data)
    assert least <= 1e12 * row["tflops"] <= 1.2 * least  # And the products of the metrics.


def test_the_operations_are_counted_without_the_backends_analysis(monkeypatch: pytest.MonkeyPatch):
    """JAX has none for GPUs and TPUs: it answers None there."""
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda _: None)
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), "float32"))
    assert count_flops(lowered) == (2 * 8**3, 0)
