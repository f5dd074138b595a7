"""The first page of help, and the list of all flags."""

from __future__ import annotations

import pytest

from diffusion_jax.commands import command_line
from diffusion_jax.commands.help_page import help_page
from diffusion_jax.commands.modes import MODES
from tests.tiny_run import run


def test_the_help_fits_a_terminal_of_24_lines_of_100_columns() -> None:
    lines = help_page().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100


def test_the_help_has_one_line_for_each_mode_that_is_built() -> None:
    modes = help_page().partition("modes:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in modes.splitlines()] == list(MODES)
    assert [line for line in modes.splitlines() if "(default)" in line][0].split()[0] == "train"


@pytest.mark.parametrize("name", ["FLAGS", "flags"])
def test_every_flag_has_a_line_of_its_own_in_the_help_of_flags(name: str) -> None:
    outcome = run(f"--help={name}")
    assert (outcome.status, outcome.err) == (0, "")
    listed = [line.split()[0] for line in outcome.out.splitlines() if line.startswith("  -")]
    flags = [f"--{flag}" for flag in vars(command_line._parser().parse_args([]))]
    flags = [flag for flag in flags if flag not in ("--field", "--help")]
    assert len(flags) > 5 and set(flags) <= set(listed)


def test_the_step_that_the_help_proposes_is_a_command_that_is_taken() -> None:
    proposed = help_page().partition("start with: python -m diffusion_jax.main ")[2].splitlines()[0]
    flags, assignments = command_line.parse(proposed.split())
    assert (flags.mode, flags.workdir, assignments) == ("train", "runs/digits", [])
