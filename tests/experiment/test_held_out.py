"""Bits per dimension in a training run: they are those of --mode=evaluate, and change nothing of the training."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import pytest
from PIL import Image
from tiny_run import digits_in, results, rows, run, state_of, write_config

import diffusion_jax
from diffusion_jax.experiment import metrics
from diffusion_jax.metrics import VariationalBits
from diffusion_jax.parallel import sharding

# A bound of few terms on half of the chain's steps: the eval group's fields count.
EVAL = (
    *("eval.num_images=20", "eval.batch_size=16", "eval.num_terms=4", "eval.num_steps=10"),
    "eval.variance=fixed_small",
)
EVAL = (*EVAL, "eval.seed=3", "eval.clip=false")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache"), plots=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), "config.model.num_classes = 10")


def flags_of(tiny: Path, workdir: Path, *fields: str) -> list[str]:
    flags = [f"--config.{field}" for field in (*EVAL, *fields)]
    return [f"--config={tiny}", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps, with bits/dim every four, and a held-out loss at the end."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    outcome = run(*flags_of(tiny, workdir, "train.bpd_every=4", "train.eval_every=12"))
    assert outcome.status == 0 and "warning" not in outcome.err, outcome.err
    assert outcome.err.count("  bits/dim ") == 3
    return workdir


def test_the_held_out_loss_is_measured_at_each_checkpoint_if_nobody_says_when_and_there_are_test_images(
    measured: Path,
) -> None:
    run = diffusion_jax.load_run(measured)
    config = copy.deepcopy(run.config)
    config.train.bpd_every = 0
    for told, has_test, every in (
        (None, True, [4]),
        (None, False, []),
        (7, True, [7]),
        (0, True, []),
    ):
        config.train.eval_every = told
        exp = dataclasses.replace(run, config=config)
        made = metrics.held_out_measures(exp, sharding.make_mesh(1), has_test=has_test)
        assert [(m.name, m.every) for m in made] == [("eval_loss", n) for n in every]


def bounds(workdir: Path) -> dict[int, dict[str, Any]]:
    """Returns the rows with bits/dim, by step."""
    found = [row for row in rows(workdir) if "eval_bpd" in row]
    assert len({row["step"] for row in found}) == len(found)
    return {row["step"]: row for row in found}


@pytest.mark.parametrize("step", [8, 12])
def test_a_row_has_what_evaluate_says_of_that_checkpoint(measured: Path, step: int) -> None:
    row = bounds(measured)[step]
    assert row.keys() == {"step", "eval_bpd", "eval_bpd_stderr", "eval_rate", "eval_distortion"}
    fields = (*EVAL, f"sample.step={step}", "mesh.data=1")
    outcome = run(
        "--mode=evaluate", f"--workdir={measured}", *(f"--config.{field}" for field in fields)
    )
    assert outcome.status == 0, outcome.err
    filed = results(measured, "evaluate")["bpd"]
    for name, value in (
        ("eval_bpd", filed["total"]["value"]),
        ("eval_bpd_stderr", filed["total"]["stderr"]),
        ("eval_rate", filed["rate"]["value"]),
        ("eval_distortion", filed["distortion"]["value"]),
    ):
        assert row[name] == pytest.approx(value, rel=1e-6)


def test_rows_come_every_n_steps_and_the_last_one_is_filed_and_drawn(measured: Path) -> None:
    measures = bounds(measured)
    assert list(measures) == [4, 8, 12]
    assert len({row["eval_bpd"] for row in measures.values()}) == 3
    filed = results(measured, "train")
    assert filed["eval_bpd"] == measures[12]["eval_bpd"]
    assert filed["eval_bpd_stderr"] == measures[12]["eval_bpd_stderr"]
    assert filed["eval_loss"] == next(
        row["eval_loss"] for row in rows(measured) if "eval_loss" in row
    )
    with Image.open(measured / "loss.png") as image:
        assert image.height > 700  # A second panel; 540 without.


@pytest.mark.slow
def test_a_resumed_run_measures_what_is_missing_and_ends_with_the_parameters_of_one_that_measures_nothing(
    tiny: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, resumed = tmp_path / "plain", tmp_path / "resumed"
    assert run(*flags_of(tiny, plain)).status == 0
    assert results(plain, "train")["eval_bpd"] is None and not bounds(plain)
    with Image.open(plain / "loss.png") as image:
        assert image.height == 540
    counts = count_measurements(monkeypatch)

    def go_on(num_steps: int, expected: int) -> None:
        counts.clear()
        flags = flags_of(tiny, resumed, "train.bpd_every=4", f"train.num_steps={num_steps}")
        assert run(*flags).status == 0
        assert len(counts) == expected

    go_on(4, 1)
    go_on(8, 1)  # Step 4 has its row.
    log = resumed / "metrics.jsonl"
    kept = [row for row in rows(resumed) if not (row["step"] == 8 and "eval_bpd" in row)]
    log.write_text("".join(json.dumps(row) + "\n" for row in kept))
    go_on(12, 2)  # Steps 8, whose row a kill has lost, and 12.
    for step, row in bounds(measured).items():
        assert bounds(resumed)[step] == row
    chex.assert_trees_all_equal(state_of(resumed), state_of(plain))
    chex.assert_trees_all_equal(state_of(measured), state_of(plain))


def count_measurements(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    counts: list[Any] = []
    make: Callable[..., Any] = metrics.make_measure_of

    def counting(*arguments: Any, **options: Any) -> Any:
        measure = make(*arguments, **options)
        return lambda params: (counts.append(1), measure(params))[1]

    monkeypatch.setattr(metrics, "make_measure_of", counting)
    return counts


def test_a_bound_that_is_not_finite_is_null_and_warned_of_once_and_training_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: Callable[..., Any] = VariationalBits.bound

    def broken(*inputs: Any, **options: Any) -> Any:
        result = bound(*inputs, **options)
        last = result.terms.at[-1].set(jnp.inf)  # L_0, at t = 1 of times 1, 3, ..., 19.
        return result._replace(terms=last)

    monkeypatch.setattr(VariationalBits, "bound", broken)
    outcome = run(*flags_of(tiny, tmp_path / "run", "train.bpd_every=4"))
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("warning: ") == 1
    assert "warning: bits/dim: 20 terms of the bound are not finite, at t = " in outcome.err
    assert outcome.err.count("bits/dim not finite") == 3
    measures = bounds(tmp_path / "run")
    assert list(measures) == [4, 8, 12]
    for row in measures.values():
        assert row["eval_bpd"] is row["eval_bpd_stderr"] is row["eval_distortion"] is None
        assert row["eval_rate"] > 0
    assert results(tmp_path / "run", "train")["eval_bpd"] is None


def test_no_figure_that_is_not_finite_reaches_a_row(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere_finite(*_: Any, **__: Any) -> Callable[[Any, Any], float]:
        return lambda params, aux: float("nan")

    monkeypatch.setattr(metrics, "make_held_out_loss", nowhere_finite)
    loss, _ = metrics.held_out_measures(diffusion_jax.load_run(measured), sharding.make_mesh(1))
    assert loss.figures(None, ()) == {"eval_loss": None}
