"""Completion of the command, by the shells themselves."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tiny_run import run

from diffusion_jax import recipes
from diffusion_jax.commands.completion import SHELLS
from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import FIELDS
from diffusion_jax.interchange import SOURCES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts of all shells, and some files."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        outcome = run(f"--completion={shell}")
        assert (outcome.status, outcome.err) == (0, "")
        (folder / f"script.{shell}").write_text(outcome.out)
    for name in ("pictures/cats", "my pictures (2)/cats"):
        (folder / name).mkdir(parents=True)
    for name in ("pictures.zip", "mask.png"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def script(folder: Path) -> Path:
    return folder / "script.bash"


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
        ("--config=scr", [f"script.{shell}" for shell in SHELLS]),
        ("--workdir=pi", ["pictures/"]),
        ("--format=", list(SOURCES)),
        ("--source=pi", ["pictures/", "pictures.zip"]),
        ("--config.data.source_dir=pi", ["pictures/", "pictures.zip"]),
        ("--config.data.cache_dir=pi", ["pictures/"]),
        ("--config.edit.images=a,ma", ["a,mask.png"]),
        ("--config.edit.mask=a,ma", []),
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


# What is typed before a TAB -> the line after it.
TYPED = {
    "--mode=inp": "--mode=inpaint",
    "--config.train.num_st": "--config.train.num_steps=",
    "--config.eval.metrics=fd,ki": "--config.eval.metrics=fd,kid",
    "--config=fashion_mnist_": "--config=fashion_mnist_vp",
    "--workdir=pi": "--workdir=pictures/",
    "--config.data.cache_dir=pictures/": "--config.data.cache_dir=pictures/cats/",
    "--config.edit.images=x,ma": "--config.edit.images=x,mask.png",
    "--config.data.source_dir=my": "--config.data.source_dir=my\\ pictures\\ \\(2\\)/",
    "--config.data.source_dir=my\\ pictures\\ \\(2\\)/c": "--config.data.source_dir=my\\ pictures\\ \\(2\\)/cats/",
}
# How a shell begins, reads its script, and writes the line at Ctrl-P.
INTERACTIVE = {
    "bash": (
        ["bash", "--norc", "-i"],
        'bind -x \'"\\C-p": printf %s "$READLINE_LINE" > line; mv line typed\'',
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "tell() { print -rn -- $BUFFER > line; mv line typed }; zle -N tell; bindkey '^P' tell",
    ),
}


class Terminal:
    """A shell in a terminal, in which somebody types."""

    def __init__(self, shell: str, folder: Path) -> None:
        command, told = INTERACTIVE[shell]
        self._typed = folder / "typed"
        self._terminal, inner = pty.openpty()
        environment = {**os.environ, "PS1": "> ", "TERM": "dumb", "ZDOTDIR": str(folder)}
        self._shell = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=inner, stdout=inner, stderr=inner
        )
        os.close(inner)
        self._write(f"source ./script.{shell}\n{told}\n")

    def completed(self, word: str) -> str:
        """Returns what a TAB makes of a word of the command's line."""
        self._typed.unlink(missing_ok=True)
        self._write(f"diffusion-jax {word}\t\x10")
        end = time.monotonic() + 60
        while not self._typed.exists() and time.monotonic() < end:
            if select.select([self._terminal], [], [], 0.05)[0]:
                os.read(self._terminal, 4096)
        self._write("\x15")
        return self._typed.read_text().removeprefix("diffusion-jax ").rstrip()

    def _write(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def close(self) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._terminal)


@pytest.mark.parametrize("shell", INTERACTIVE)
def test_a_tab_in_a_terminal_completes(shell: str, folder: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}, to complete in")
    terminal = Terminal(shell, folder)
    try:
        assert {word: terminal.completed(word) for word in TYPED} == TYPED
    finally:
        terminal.close()


def test_fish_completes(folder: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("needs fish, to complete in")
    for word, completed in TYPED.items():
        if "\\" not in word + completed:  # Its answers are not quoted for the line.
            program = f"source script.fish; complete -C 'diffusion-jax {word}'"
            command = ["fish", "--no-config", "-c", program]
            answer = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            assert answer.stdout.splitlines() == [completed.removesuffix("=")], answer.stderr


def test_another_shell_is_refused_with_those_that_there_are() -> None:
    refused = run("--completion=csh")
    assert refused.status == 2 and "'csh'; it must be one of bash, zsh, fish" in refused.err
