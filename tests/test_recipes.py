"""The configs that come with the package are found by name, from any folder."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from diffusion_jax import recipes
from diffusion_jax.config import config_hash, load_file
from diffusion_jax.errors import InputError
from diffusion_jax.main import main

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_names_are_those_of_the_files_in_configs() -> None:
    assert recipes.names() == sorted(path.stem for path in CONFIGS.glob("*.py"))
    assert {"digits", "cifar10"} <= set(recipes.names())


def test_a_recipe_for_more_chips_sees_the_same_images() -> None:
    paper, pod = load_file("cifar10"), load_file("cifar10_v5e16")
    times = pod.train.batch_size / paper.train.batch_size
    assert times == 16 and pod.train.batch_size / 16 == 128
    assert pod.train.num_steps * times == paper.train.num_steps
    assert pod.optimizer.learning_rate == pytest.approx(paper.optimizer.learning_rate * times**0.5)
    warm = [c.optimizer.warmup_steps * c.train.batch_size for c in (paper, pod)]
    assert warm[0] <= warm[1] < warm[0] + pod.train.batch_size
    # Images after which a parameter's share of the average has fallen to 1 / e.
    lasts = [-c.train.batch_size / math.log(c.optimizer.ema_decay) for c in (paper, pod)]
    assert lasts[0] == pytest.approx(lasts[1])
    assert load_file("cifar10_h100").model.dtype == pod.model.dtype == "bfloat16"


@pytest.mark.parametrize("name", ["digits", "digits_subvp"])  # The second loads two others.
def test_a_name_is_the_config_of_that_file_from_any_folder(name: str) -> None:
    assert config_hash(load_file(name)) == config_hash(load_file(str(CONFIGS / f"{name}.py")))


def test_a_file_or_folder_of_a_recipes_name_is_another_thing(elsewhere: Path) -> None:
    (elsewhere / "digits").mkdir()
    mine = "def get_config():\n    c = load_file('digits')\n    c.seed = 5\n    return c\n"
    (elsewhere / "digits.py").write_text(f"from diffusion_jax.config import load_file\n{mine}")
    assert load_file("digits").seed == 0
    assert load_file("digits.py").seed == load_file("./digits.py").seed == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("digts", r"no config is named 'digts'; choose one of digits, digits_\w+, digits_\w+, or"),
        ("cifar-10", r"'cifar-10'; choose one of cifar10, "),
        ("zzz", r"choose one of celebahq256, .*, lsun256, or .*\./my_config\.py"),
        ("configs/digits.py", r"no such file: configs/digits\.py; --config=digits is the one"),
        ("configs/mine.py", r"no such file: configs/mine\.py$"),
        ("", r"no such file"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_the_near_ones(config: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_file(config)
    assert "\n" not in str(error.value)


def test_the_workdir_of_a_name_is_the_run_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config=digits", "--mode=sample"]) == 2
    assert "no trained run in runs/digits (" in capsys.readouterr().err


def test_configs_inside_the_package_come_before_a_folder_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a wheel has them, whatever else lies in site-packages."""
    for folder, name in (("diffusion_jax/configs", "ours"), ("configs", "theirs")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.py").touch()
    source = Path(recipes.__file__)
    copy = tmp_path / "diffusion_jax" / source.name
    copy.write_text(source.read_text())
    spec = importlib.util.spec_from_file_location("copied_recipes", copy)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.names() == ["ours"]
