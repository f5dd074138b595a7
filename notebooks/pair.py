"""Makes each notebook and the script beside it equal, with cell ids that stay.

    python notebooks/pair.py                  # Notebooks from the scripts that were edited.
    python notebooks/pair.py --from-notebooks # Scripts from the notebooks that were edited.

A cell's id is a hash of its contents, where Jupytext draws new ones at each conversion: so a diff has only what was
edited. A notebook has no outputs.
"""

from __future__ import annotations

import collections
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jupytext
import nbformat

FOLDER = Path(__file__).parent
# Of a notebook: no header for its script, and "%pip" as it is.
METADATA = {
    "jupytext": {
        "cell_metadata_filter": "-all",
        "main_language": "python",
        "notebook_metadata_filter": "-all",
    }
}


def cell_ids(cells: Iterable[Any]) -> list[str]:
    """Returns the id of each cell: a hash of its contents, and of how many cells before it have the same."""
    seen, ids = collections.Counter[tuple[str, str]](), []
    for cell in cells:
        contents = cell["cell_type"], cell["source"]
        ids.append(hashlib.sha256(repr((*contents, seen[contents])).encode()).hexdigest()[:8])
        seen[contents] += 1
    return ids


def notebook_of(cells: Iterable[Any]) -> str:
    """Returns the file of a notebook with these cells, without outputs."""
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    made = [
        new[cell["cell_type"]](cell["source"], id=name, metadata=cell["metadata"])
        for cell, name in zip(cells, cell_ids(cells), strict=True)
    ]
    notebook = nbformat.v4.new_notebook(cells=made, metadata=METADATA, nbformat_minor=5)
    return nbformat.writes(notebook) + "\n"


def script_of(cells: list[Any]) -> str:
    """Returns the script with these cells."""
    notebook = nbformat.reads(notebook_of(cells), as_version=4)
    notebook.metadata.jupytext["comment_magics"] = False
    return jupytext.writes(notebook, fmt="py:percent")


def main(arguments: list[str]) -> None:
    """Pairs all notebooks of this folder."""
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        script = notebook.with_suffix(".py")
        if arguments == ["--from-notebooks"]:
            script.write_text(script_of(nbformat.read(notebook, as_version=4).cells))
        notebook.write_text(notebook_of(jupytext.read(script).cells))


if __name__ == "__main__":
    main(sys.argv[1:])
