"""Runs the notebooks whole, one after the other, and says how long each takes.

    python benchmarks/notebooks.py [--output FOLDER] [NAME ...]

FOLDER gets the executed notebooks, with their pictures.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def main() -> None:
    """Prints minutes and pictures of each notebook, and of all."""
    parser = argparse.ArgumentParser(description="Runs the notebooks whole.")
    parser.add_argument("names", nargs="*", help="such as 01_quickstart; all by default")
    parser.add_argument("--output", type=Path, help="folder for the executed notebooks")
    flags = parser.parse_args()
    paths = [FOLDER / f"{name}.ipynb" for name in flags.names] or sorted(FOLDER.glob("*.ipynb"))
    minutes = []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook,
                timeout=1200,
                kernel_name="python3",
                resources={"metadata": {"path": folder}},
            )
            client.execute()
        minutes.append((time.monotonic() - started) / 60)
        pictures = sum(
            "image/png" in output.get("data", {})
            for cell in notebook.cells
            for output in cell.get("outputs", [])
        )
        print(f"{path.stem:<36} {minutes[-1]:5.2f} min, {pictures} pictures", flush=True)
        if flags.output:
            flags.output.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, flags.output / path.name)
    print(f"{'all':<36} {sum(minutes):5.2f} min")


if __name__ == "__main__":
    sys.exit(main())
