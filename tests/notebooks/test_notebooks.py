"""The notebooks: each runs from top to bottom, is kept without outputs, and equals the script beside it."""

import re
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
sys.path.append(str(FOLDER))
import pair  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/{})"
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_kept_without_outputs_and_has_its_own_badge(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert BADGE.format(path.name) in cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_equals_the_script_beside_it(path: Path):
    """`python notebooks/pair.py` makes them equal, to the byte in both directions."""
    script = path.with_suffix(".py")
    assert path.read_text() == pair.notebook_of(jupytext.read(script).cells)
    assert script.read_text() == pair.script_of(nbformat.read(path, as_version=4).cells)


def test_an_edit_of_a_cell_gives_it_alone_another_id():
    cells = jupytext.reads(
        "# %% [markdown]\n# a\n\n# %%\nb\n\n# %%\nb\n\n# %%\nc\n", "py:percent"
    ).cells
    before = pair.cell_ids(cells)
    cells[1].source = "d"
    after = pair.cell_ids(cells)
    assert len({*before}) == 4 and [i for i in range(4) if before[i] != after[i]] == [1, 2]
    assert after[2] == before[1]  # The first of its kind now.


def test_all_begin_by_the_same_installation():
    first = {nbformat.read(path, as_version=4).cells[1].source for path in NOTEBOOKS}
    (cell,) = first
    assert re.search(r"%pip install .*package", cell) and "jax.devices()" in cell


def run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a notebook from top to bottom.

    With a few steps of training; `benchmarks/notebooks.py` runs them whole.
    """
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Else a kernel shows no figures.
    monkeypatch.setenv("NOTEBOOK_STEPS", "20")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # Most of its time is compilation.
    monkeypatch.chdir(tmp_path)  # What it writes stays there.
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4
    said = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in said


# Two classes, since each is one process's.
@pytest.mark.slow
class TestOneHalf:
    @pytest.mark.parametrize("path", NOTEBOOKS[::2], ids=lambda path: path.name)
    def test_notebook_runs(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        run(path, tmp_path, monkeypatch)


@pytest.mark.slow
class TestOtherHalf:
    @pytest.mark.parametrize("path", NOTEBOOKS[1::2], ids=lambda path: path.name)
    def test_notebook_runs(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        run(path, tmp_path, monkeypatch)
