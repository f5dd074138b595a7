"""Loggers: each gets every row and picture of a run; Weights & Biases goes on after a resume."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from tiny_run import run, write_config

from diffusion_jax.errors import InputError
from diffusion_jax.options import Component
from diffusion_jax.training import LOGGERS
from diffusion_jax.training.loggers import WeightsAndBiases
from diffusion_jax.training.run_log import RunLog

PICTURE = np.zeros((4, 5, 1), np.uint8)


class Listed:
    """Keeps what it is given."""

    def __init__(self, workdir: Path, start: int, settings: dict[str, Any] | None = None) -> None:
        self.begun, self.settings = (workdir, start), settings
        self.points: list[Any] = []
        self.images: list[Any] = []
        self.closed = False

    def scalars(self, values: Any, step: int) -> None:
        self.points.append((step, dict(values)))

    def image(self, name: str, picture: Any, step: int) -> None:
        self.images.append((step, name, picture.shape))

    def close(self) -> None:
        self.closed = True


def test_every_logger_gets_every_row_and_picture_and_is_closed(tmp_path: Path):
    made: list[Listed] = []

    def make(workdir: Path, start: int) -> Listed:
        made.append(Listed(workdir, start))
        return made[-1]

    log = RunLog(tmp_path, 5, 10, loggers=(make, make))
    log.metrics({"step": 7, "loss": 0.5, "eval_loss": None})
    log.image("grid", PICTURE, 8)
    log.close()
    for logger in made:
        assert logger.begun == (tmp_path, 5) and logger.closed
        assert logger.points == [(7, {"loss": 0.5, "eval_loss": None})]
        assert logger.images == [(8, "grid", (4, 5, 1))]
    assert len(made) == 2 and not (tmp_path / "tensorboard").exists()


def test_all_are_closed_if_one_fails(tmp_path: Path):
    last = Listed(tmp_path, 0)
    failing = MagicMock()
    failing.close.side_effect = OSError("full")
    log = RunLog(tmp_path, 0, 10, loggers=(lambda **_: last, lambda **_: failing))
    with pytest.raises(OSError, match="full"):
        log.close()
    assert last.closed


def test_processes_without_a_log_have_no_loggers(tmp_path: Path):
    log = RunLog(tmp_path, 0, 10, writes=False, loggers=(lambda **_: pytest.fail("made"),))
    log.image("grid", PICTURE, 1)
    log.close()


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    init = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Image=lambda x: x.shape))
    return init


def test_wandb_goes_on_with_the_curves_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    init = fake_wandb(monkeypatch)
    for start in (0, 10):
        logger = WeightsAndBiases(tmp_path, start, {"seed": 3}, wandb_project="mine")
        logger.scalars({"loss": 0.5, "eval_loss": None}, 12)
        logger.image("grid", PICTURE, 12)
        logger.close()
    first, second = (call.kwargs for call in init.call_args_list)
    assert first == second and first["project"] == "mine" and first["config"] == {"seed": 3}
    logged = [call.args[0] for call in init.return_value.log.call_args_list]
    assert logged[:2] == [{"step": 12, "loss": 0.5}, {"step": 12, "grid": (4, 5)}]
    assert init.return_value.finish.call_count == 2


def test_wandb_that_is_missing_or_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'diffusion_jax\[wandb\]'"):
        WeightsAndBiases(tmp_path, 0, {})
    fake_wandb(monkeypatch).side_effect = RuntimeError("no login")
    with pytest.raises(InputError, match="wandb does not start: no login"):
        WeightsAndBiases(tmp_path, 0, {})


def test_the_config_names_the_loggers_of_a_training(tmp_path: Path):
    made: list[Listed] = []

    class Mine(Listed):
        def __init__(self, workdir: Path, start: int, settings: dict[str, Any]) -> None:
            super().__init__(workdir, start, settings)
            made.append(self)

    LOGGERS["mine"] = Component(Mine, "a list")
    try:
        outcome = run(
            f"--config={write_config(tmp_path)}",
            f"--workdir={tmp_path / 'run'}",
            "--config.train.num_steps=1",
            "--config.train.log_every=1",
            "--config.train.loggers=mine",
        )
    finally:
        del LOGGERS["mine"]
    assert outcome.status == 0, outcome.err
    (logger,) = made
    assert logger.settings is not None and logger.settings["train"]["num_steps"] == 1
    assert [step for step, _ in logger.points][:1] == [1] and logger.closed
    assert {"grid", "strip"} <= {name for _, name, _ in logger.images}
    assert not (tmp_path / "run" / "tensorboard").exists()
