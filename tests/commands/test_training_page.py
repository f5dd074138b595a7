"""The page that a training writes on the way and at its end, and that never stops it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_run import run, write_config

from diffusion_jax.commands import training_page
from diffusion_jax.config import default_config
from diffusion_jax.experiment import sampling
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.report import page


def test_a_training_ends_with_its_page_and_the_reverse_process_that_the_report_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, write = list[int](), page.write_page

    def counted(workdir: Path, others: object, *, paper: bool) -> Path:
        assert others == [] and paper
        steps.append((workdir / "metrics.jsonl").read_text().count('"loss"'))
        return write(workdir, paper=paper)

    monkeypatch.setattr(page, "write_page", counted)
    workdir = tmp_path / "run"
    arguments = f"--config={write_config(tmp_path)}", f"--workdir={workdir}"
    outcome = run(*arguments, "--config.report.every=6", "--config.report.paper=true")
    assert outcome.status == 0, outcome.err
    assert f"page of the run {workdir / 'report.html'}" in outcome.err
    assert steps == [2, 4]  # Rows at steps 6 and 12.
    moments = read_npz(workdir / "results" / "report" / "reverse.npz")
    assert moments["x_t"].shape == (11, 4, 8, 8, 1)  # train.sample_images is 4.
    assert (moments["x_t"][-1] == moments["x0_hat"][-1]).all() and np.ptp(moments["x_t"]) > 0
    monkeypatch.setattr(sampling, "make_draw", None)  # Nothing is drawn again.
    outcome = run("--mode=report", f"--workdir={workdir}")
    assert outcome.status == 0 and "nothing" not in outcome.err, outcome.err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ZeroDivisionError("x")])
def test_a_page_that_cannot_be_written_is_a_warning(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(page, "write_page", fail)
    hook = training_page.page_hook(tmp_path, None, False, every=default_config().report.every)
    with pytest.warns(UserWarning, match="the page of the run is not written"):
        hook.run(None, 5)  # pyright: ignore[reportArgumentType]


def test_without_report_every_no_page_is_written_on_the_way(tmp_path: Path) -> None:
    hook = training_page.page_hook(tmp_path, None, False, every=default_config().report.every)
    assert not any(hook.due(step, 100) for step in range(1, 101))


def test_a_run_to_compare_with_that_is_gone_costs_no_training(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training_page.page_hook(tmp_path, [str(tmp_path / "gone")], False, every=5).run(None, 5)  # pyright: ignore[reportArgumentType]
    assert "no run in" in str(caught[0].message)
