"""`--mode=plan`: what it writes and refuses; with the TPU's compiler, where that is installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Outcome, environment, finish, results, run, start, write_config

from diffusion_jax.commands import plan
from diffusion_jax.config import default_config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.planning import assumed_images
from diffusion_jax.planning import chips
from diffusion_jax.planning.chips import TOPOLOGIES, Chip

NOWHERE = "--config.data.cache_dir=/dev/null/nothing"


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., tuple[Outcome, dict[str, Any]]]:
    """Plans the tiny run; returns the outcome and plan.json."""

    def planned(*flags: str) -> tuple[Outcome, dict[str, Any]]:
        config, workdir = write_config(tmp_path), tmp_path / "run"
        outcome = run("--mode=plan", f"--config={config}", f"--workdir={workdir}", NOWHERE, *flags)
        assert outcome.status == 0, outcome.err
        assert [path.name for path in workdir.iterdir()] == ["results"]  # No run begins.
        return outcome, results(workdir, "plan")

    return planned


def test_a_training_on_the_cpu_is_planned_without_its_data(planned: Any):
    outcome, figures = planned("--config.mesh.data=4")
    assert figures["devices"] == 4 and figures["device_kind"] == "cpu"
    assert figures["image_shape"] == [8, 8, 1] and figures["image_shape_from"] == "those of digits"
    assert figures["fits"] and figures["flags"] == ""
    (only,) = figures["plans"]
    memory = only["memory"]
    assert memory["optimizer"] == 2 * memory["parameters"] + 8
    assert memory["averages"] == memory["parameters"]
    assert only["needed"] == memory["total"] > 4 * memory["parameters"]
    reduced = only["collectives"]["all-reduce"]["result_bytes"]
    assert reduced == pytest.approx(memory["parameters"], rel=0.01)
    assert only["gflop_per_image"] > 0 and only["compile_seconds"] > 0
    assert only["bound"] is None and only["cost"] == {}  # There is no peak of a CPU.
    assert 4 * only["num_parameters"] == memory["parameters"]
    assert f"{only['num_parameters']:,} parameters" in outcome.out
    assert only["cycles"] == {} and only["expected_seconds"] is None
    assert "fits:" in outcome.out and "peak figures of this device are not known" in outcome.out


def test_what_does_not_fit_is_changed_until_it_does(planned: Any, monkeypatch: pytest.MonkeyPatch):
    chip = Chip("tiny", {"float32": 1e9, "bfloat16": 2e9}, 600_000.0, 1e6, 1e5)
    monkeypatch.setattr(plan, "chip_of", lambda _: chip)
    monkeypatch.setattr(plan, "memory_of", lambda *_: int(chip.memory))
    outcome, figures = planned(
        "--config.train.batch_size=256", "--price=2", "--config.train.num_steps=7200"
    )
    assert not figures["fits"]
    *failed, last = figures["plans"]
    assert all(attempt["needed"] > chip.memory for attempt in failed) and failed
    assert last["needed"] <= chip.memory and last["changes"]
    assert figures["flags"] == f"--config.train.accumulate={last['changes']['train.accumulate']}"
    least = last["bound"]
    assert least["compute"] == pytest.approx(last["flops"] / 1e9)
    assert least["memory"] == pytest.approx(last["bytes_accessed"] / 1e6)
    assert least["step"] == max(least["compute"], least["memory"], least["interconnect"])
    assert least["images_per_second"] == pytest.approx(256 / least["step"])
    assert f"it fits with {figures['flags']}" in outcome.out
    (taken,) = last["cost"].values()  # 7,200 steps are two hours of a step of a second.
    assert taken["hours"] == pytest.approx(2 * least["step"])
    assert taken["price"] == 2 * taken["chip_hours"] == 2 * last["mesh"]["data"] * taken["hours"]
    assert f"{taken['chip_hours']:,.2f} chip-hours, for {taken['price']:,.2f}" in outcome.out


def test_gpus_that_are_not_here_are_planned_by_a_roofline_alone(planned: Any):
    outcome, figures = planned(
        "--topology=h100:4", "--config.mesh.data=-1", "--config.train.batch_size=64", "--price=3"
    )
    assert (figures["topology"], figures["devices"], figures["fits"]) == ("h100:4", 4, None)
    assert figures["flags"] is None and figures["device_kind"] == "NVIDIA H100 80GB HBM3"
    (only,) = figures["plans"]
    memory, bound, parameters = only["memory"], only["bound"], only["num_parameters"]
    assert set(memory) == {"parameters", "optimizer", "averages", "batch", "total"}
    assert memory["parameters"] == 4 * parameters and memory["batch"] == 16 * (8 * 8 + 4)
    # Of the data sheet: TF32, HBM3, and NVLink in one direction; three quarters of the gradients go around twice.
    assert bound["compute"] == pytest.approx(only["flops"] / 494.7e12)
    assert bound["memory"] == pytest.approx(
        2 * (memory["total"] - memory["batch"]) / 3.35e12, rel=0.01
    )
    assert bound["interconnect"] == pytest.approx(2 * 0.75 * 4 * parameters / 450e9)
    assert only["cost"]["at_best"]["chip_hours"] == pytest.approx(
        4 * only["cost"]["at_best"]["hours"]
    )
    assert "a roofline alone" in outcome.out and "whether it fits is not known" in outcome.out
    assert "may fit: " in outcome.out and "without activations" in outcome.out


def test_a_state_that_is_too_large_for_gpus_is_divided(
    planned: Any, monkeypatch: pytest.MonkeyPatch
):
    chip = Chip("tiny", {"float32": 1e9}, 800_000.0, 1e6, 1e5)
    monkeypatch.setitem(chips.CHIPS, "NVIDIA H200", chip)
    network = ("--config.mesh.data=-1", "--config.model.name=mlp", "--config.model.channels=128")
    outcome, figures = planned("--topology=h200:8", *network, "--config.train.batch_size=64")
    assert figures["fits"] is False
    assert all(set(attempt["changes"]) <= {"mesh.fsdp"} for attempt in figures["plans"])
    last = figures["plans"][-1]
    assert last["fits"] is None and last["needed"] <= 800_000 and last["changes"]
    assert f"whether it fits with --config.mesh.fsdp={last['mesh']['fsdp']} is not" in outcome.out


def test_a_batch_that_gpus_do_not_divide_is_one_line(tmp_path: Path):
    flags = ("--topology=a100-80gb:3", "--config.mesh.data=-1", "--config.train.batch_size=64")
    outcome = run("--mode=plan", f"--config={write_config(tmp_path)}", *flags)
    refused(outcome, "train.batch_size is 64; it must be divisible by 3")


def refused(outcome: Outcome, *fragments: str) -> None:
    assert outcome.status == 2, outcome.err
    (line,) = outcome.err.splitlines()
    for fragment in fragments:
        assert fragment in line


def test_a_topology_without_the_tpu_compiler_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    config = write_config(tmp_path)
    refused(
        run("--mode=plan", f"--config={config}", "--topology=v5e:4x4"),
        "--topology needs the TPU's compiler, libtpu: pip install -e '.[tpu]'",
    )


def test_an_unknown_topology_is_answered_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    outcome = run("--mode=plan", f"--config={write_config(tmp_path)}", "--topology=v9:4x4")
    refused(outcome, "unknown --topology 'v9:4x4'", *TOPOLOGIES, "16x16", "8x8x16")


def test_a_plan_reads_no_images_so_it_knows_the_classes_of_some_data_alone():
    config = default_config()
    config.model.num_classes = "auto"
    assert assumed_images(config) == ((8, 8, 1), 10)
    config.data.name, config.data.image_size = "image_folder", 64
    with pytest.raises(InputError, match="model.num_classes is 'auto', but --mode=plan reads no"):
        assumed_images(config)


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "cheap", ""])
def test_a_price_that_is_none_is_one_line(tmp_path: Path, price: str):
    outcome = run("--mode=plan", f"--config={write_config(tmp_path)}", f"--price={price}")
    refused(outcome, f"--price is '{price}'")


def test_a_topology_and_a_price_are_for_plans_alone(tmp_path: Path):
    config = write_config(tmp_path)
    refused(run(f"--config={config}", "--price=1"), "--price is for --mode=plan")
    refused(run(f"--config={config}", "--topology=v5e:4x4"), "--topology is for --mode=plan")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, of the extra [tpu]; a job in CI has it",
)
def test_a_slice_of_tpus_is_planned_on_a_machine_without_one(tmp_path: Path):
    """In another process, as the TPU's compiler changes what JAX sees of the machine."""
    more = 'config.model.name = "unet"\nconfig.model.channel_mult = (1,)\nconfig.mesh.data = -1\n'
    more += "config.model.attention_resolutions = ()\nconfig.train.batch_size = 1024\n"
    config, workdir = write_config(tmp_path, more), tmp_path / "run"
    flags = ["--mode=plan", f"--config={config}", f"--workdir={workdir}", NOWHERE]
    outcome = finish(start([*flags, "--topology=v5e:4x4"], environment()), timeout=600)
    assert outcome.status == 0, outcome.err
    figures = results(workdir, "plan")
    assert figures["device_kind"] == "TPU v5 lite" and figures["devices"] == 16
    (only,) = figures["plans"]
    assert only["mesh"] == {"data": 16, "fsdp": 1} and figures["fits"]
    memory = only["memory"]
    assert memory["padding"] > 0 and memory["code"] > 0
    reduced = only["collectives"]["all-reduce"]["result_bytes"]
    assert reduced == pytest.approx(memory["parameters"], rel=0.01)
    # The 197 TFLOP/s of the chip's data sheet.
    assert only["bound"]["compute"] == pytest.approx(only["flops"] / 197e12)
    # What the compiler expects of so small a network is what its operations cost to start: each about a microsecond
    # (1,825 cycles), and there are fewer than 10^4.
    assert only["bound"]["step"] < only["expected_seconds"] < 0.01
    assert "the compiler expects" in outcome.out and "fusion" in only["cycles"]
    wrong = finish(start([*flags, "--topology=v5e:3x3"], environment()), timeout=600)
    refused(wrong, "unknown --topology 'v5e:3x3'", "v5e/v6e: 1x1")
