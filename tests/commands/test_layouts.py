"""A run does not depend on the mesh that it is computed on, nor on its moving from one to another."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import digits_in, rows, run, write_config

pytestmark = pytest.mark.slow  # Every test trains several times.


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on one device."""
    folder = tmp_path_factory.mktemp("alone")
    with digits_in(folder / "cache"):
        write_config(folder)
        train(folder, "run")
        yield folder


def train(folder: Path, name: str, data: int = 1, fsdp: int = 1, num_steps: int = 12) -> None:
    """Trains to a step on a mesh; kernels of 128 x 128 are divided along fsdp."""
    fields = (f"mesh.data={data}", f"mesh.fsdp={fsdp}", f"train.num_steps={num_steps}")
    fields = (*fields, "model.channels=128", "train.log_every=1", "sampler.num_steps=2")
    flags = [f"--config.{field}" for field in fields]
    outcome = run(f"--config={folder / 'tiny.py'}", f"--workdir={folder / name}", *flags)
    assert outcome.status == 0, outcome.err
    assert f" {data * fsdp} device(s)" in outcome.err


def assert_same_losses(folder: Path, name: str) -> None:
    mine, alone = (rows(folder / run_name) for run_name in (name, "run"))
    assert [row["step"] for row in mine] == list(range(1, 13))
    for row, expected in zip(mine, alone, strict=True):
        # Sums over devices in another order: float32 rounding.
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["param_norm"] == pytest.approx(expected["param_norm"], rel=1e-5)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (1, 8), (2, 4)])
def test_every_mesh_has_the_losses_of_one_device(alone: Path, data: int, fsdp: int) -> None:
    train(alone, f"{data}x{fsdp}", data, fsdp)
    assert_same_losses(alone, f"{data}x{fsdp}")


def test_a_run_moves_from_one_device_to_eight_and_on_to_two(alone: Path) -> None:
    for num_steps, data, fsdp in ((4, 1, 1), (8, 1, 8), (12, 2, 1)):
        train(alone, "moved", data, fsdp, num_steps)
    assert_same_losses(alone, "moved")
