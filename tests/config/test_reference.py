"""The reference of the fields: `--help=FIELDS`, one group, one field, and docs/config.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import run

from diffusion_jax.config import FIELDS, GROUPS
from diffusion_jax.config.reference import help_text, markdown, show
from diffusion_jax.config.table import group_of

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def entries(text: str) -> dict[str, str]:
    """Returns field -> what is printed about it, on one line."""
    parts = re.split(r"^  (?=\w)", text, flags=re.MULTILINE)[1:]
    found = {}
    for part in parts:
        entry, *_ = part.split("\n\n")
        found[entry.split(" = ")[0]] = " ".join(entry.split())
    return found


def test_help_shows_each_field_with_default_meaning_and_values_in_order() -> None:
    found = entries(help_text("FIELDS"))
    assert list(found) == list(FIELDS)
    for name, field in FIELDS.items():
        expected = f"{name} = {show(field.default)} {field.meaning} ({field.allowed})"
        assert found[name] == " ".join(expected.split())


def test_help_says_what_each_group_is() -> None:
    lines = help_text("FIELDS").splitlines()
    for group, meaning in GROUPS.items():
        assert (f"{group}: {meaning}" if group else meaning) in lines


def test_help_fits_a_hundred_columns() -> None:
    widths = [len(line) for line in help_text("FIELDS").splitlines()]
    assert max(widths) <= 100 and sum(width > 90 for width in widths) > 5  # And it uses them.


@pytest.mark.parametrize("group", [group for group in GROUPS if group])
def test_help_of_a_group_shows_its_fields_alone(group: str) -> None:
    assert list(entries(help_text(group))) == [n for n in FIELDS if group_of(n) == group]


@pytest.mark.parametrize("name", ["seed", "train.num_steps"])
def test_help_of_a_field_shows_that_field_alone(name: str) -> None:
    assert list(entries(help_text(name))) == [name]


@pytest.mark.parametrize("arguments", [["--help=FIELDS"], ["--help", "FIELDS"], ["-h", "fields"]])
def test_the_command_prints_all_fields(arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == help_text("FIELDS") + "\n"


def test_plain_help_mentions_the_others() -> None:
    outcome = run("--help")
    assert outcome.status == 0 and outcome.out.startswith("usage:")
    names = ("FLAGS:", "FIELDS:", "train:", "train.num_steps:")
    assert all(f"--help={name}" in outcome.out for name in names)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", " Did you mean 'train'?"),
        ("train.num_step", " Did you mean 'train.num_steps'?"),
        ("", ""),
    ],
)
def test_help_of_an_unknown_group_lists_the_groups(name: str, hint: str) -> None:
    outcome = run(f"--help={name}")
    groups = ", ".join(group for group in GROUPS if group)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == (
        f"error: --help: unknown {name!r}; choose FIELDS, FLAGS, a field or a group: {groups}.{hint}\n"
    )


def test_the_plain_help_loads_no_jax() -> None:
    program = (
        "import sys\nfrom diffusion_jax.main import main\n"
        "try:\n  main(['--help'])\n"
        "finally:\n  assert not {'jax', 'flax', 'numpy', 'tensorflow_datasets'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_value_is_shown_as_the_command_line_takes_it() -> None:
    values = [None, True, (1, 2), (), 2e-4, "unet"]
    assert list(map(show, values)) == ["none", "true", "1,2", "()", "0.0002", "unet"]


def test_the_page_is_in_step_with_the_table() -> None:
    command = "python -m diffusion_jax.config.reference > docs/config.md"
    assert PAGE.read_text() == markdown(), f"run {command}"
    assert command in PAGE.read_text()


def test_the_page_has_one_row_of_five_cells_for_each_field() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", markdown(), flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(FIELDS)
    assert all(cells.count("|") == 3 for _, cells in rows)
    assert dict(rows)["train.num_steps"].endswith("| at a resume ")
    assert dict(rows)["sampler.clip"].endswith("| at any time ")
    assert dict(rows)["seed"].endswith("| no ")


@pytest.mark.slow
def test_the_module_prints_the_page() -> None:
    command = [sys.executable, "-W", "error", "-m", "diffusion_jax.config.reference"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", markdown())
