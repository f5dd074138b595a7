"""Completion of the command, by bash itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_run import run

from diffusion_jax import recipes
from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import FIELDS


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcome = run("--completion=bash")
    assert (outcome.status, outcome.err) == (0, "")
    path = tmp_path_factory.mktemp("completion") / "script.bash"
    path.write_text(outcome.out)
    return path


def answers(script: Path, line: str, word_breaks: str = " =:") -> list[str]:
    """Returns what bash proposes at the end of a line."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash, to complete in")
    program = (
        f'source "$1"; complete -p diffusion-jax >/dev/null || exit 3; COMP_WORDBREAKS="{word_breaks}"; '
        'COMP_LINE="$2" COMP_POINT=${#2}; _diffusion_jax; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", program, "bash", str(script), line]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=script.parent)
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout.split()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--mo", ["--mode="]),
        ("--allow", ["--allow_config_change"]),
        ("--mode=", list(MODES)),
        ("--mode=inp", ["inpaint"]),
        ("--config=dig", [name for name in recipes.names() if name.startswith("dig")]),
        ("--config=scr", ["script.bash"]),
        ("--config.train.num_st", ["--config.train.num_steps="]),
        ("--config.sampler.name=ddi", ["ddim"]),
        ("--config.eval.metrics=fd,ki", ["fd,kid"]),
        ("--config.sample.progressive=t", ["true"]),
        ("--config.train.num_steps=", []),
        ("--help=samp", ["sampler", "sample", *[n for n in FIELDS if n.startswith("samp")]]),
        ("--no_such_flag=", []),
    ],
)
def test_bash_completes(word: str, expected: list[str], script: Path) -> None:
    assert sorted(answers(script, f"diffusion-jax --workdir=x {word}")) == sorted(expected)


def test_every_field_is_proposed(script: Path) -> None:
    assert answers(script, "diffusion-jax --config.") == [f"--config.{name}=" for name in FIELDS]


def test_a_shell_that_does_not_split_at_equals_gets_the_whole_word(script: Path) -> None:
    line = "diffusion-jax --config.eval.metrics=fd,ki"
    assert answers(script, line, word_breaks=" ") == ["--config.eval.metrics=fd,kid"]


def test_zsh_is_told_to_take_it_and_another_shell_is_refused() -> None:
    assert "bashcompinit" in run("--completion=zsh").out
    refused = run("--completion=csh")
    assert refused.status == 2 and "'csh'; it must be one of bash, zsh" in refused.err
