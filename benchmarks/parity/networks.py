"""Compares imported networks with the code that they come from, on the same random weights, in float32.

For each case, a script of the library's own environment (networks_LIBRARY_peer.py) makes the network, draws weights of
which none is zero, writes a checkpoint in its own format, and the output for random images and times. The checkpoint is
imported, and our output compared. Reported is max|ours - theirs| / max|theirs|; the exit status is 1 if a difference is
above 1e-5. --write_fixtures writes the tiny cases to the folder that the tests compare with. network_times.py
compares the times of the same networks.

  PYTHONPATH=benchmarks python benchmarks/parity/networks.py --peer_python=/path/to/venv/bin/python [CASE ...]

Code that is not packaged is named by --code=FOLDER, which holds checkouts of guided-diffusion, improved-diffusion,
score_sde_pytorch and edm.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report

from diffusion_jax.commands.import_checkpoint import configured
from diffusion_jax.config import default_config
from diffusion_jax.experiment import build
from diffusion_jax.interchange import SOURCES
from diffusion_jax.interchange.openai_classifier import read_classifier
from diffusion_jax.models.networks import Model, UNet, as_functions, count_parameters

FIXTURES = Path(__file__).parents[2] / "tests/interchange/fixtures"
CASES = json.loads(Path(__file__).with_name("networks.json").read_text())
TOLERANCE = 1e-5
CLASSIFIER = "guided_diffusion_classifier"  # Of noisy images, which is no source of a run.


def theirs(python: str, code: Path | None, case: dict[str, Any], folder: Path) -> None:
    """Has the library write a checkpoint of the case into a folder, and io.npz beside it."""
    script = Path(__file__).with_name(f"networks_{case['library']}_peer.py")
    asked = json.dumps({**case, "code": str(code)})
    subprocess.run([python, str(script), asked, str(folder)], env=dict(os.environ), check=True)


def ours(case: dict[str, Any], folder: Path, outputs: int) -> tuple[Model, Any]:
    """Returns our network and its parameters, imported from the checkpoint in a folder."""
    path, settings = folder / case.get("file", ""), case.get("settings", "")
    if case["format"] == CLASSIFIER:
        classifier = read_classifier(path, settings)
        return as_functions(classifier.network, classifier.image_shape), classifier.params
    foreign = SOURCES[case["format"]].make(path=path, settings=settings)
    options = {
        name.removeprefix("model."): value
        for name, value in foreign.fields.items()
        if name.startswith("model.") and name != "model.name"
    }
    unet = UNet(**options, out_channels=outputs)
    return as_functions(unet, foreign.image_shape), foreign.params


def compare(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the figures of one case."""
    with np.load(folder / "io.npz") as stored:
        io = dict(stored)
    model, params = ours(case, folder, io["output"].shape[-1])
    params = jax.device_put(params)
    output: Any = jax.jit(model.apply)(params, io["x"], io["t"], io.get("labels"))
    error = np.abs(np.asarray(output) - io["output"]).max() / np.abs(io["output"]).max()
    figures = {"parameters": count_parameters(params), "relative_difference": float(error)}
    if "denoised" in io:
        error = np.abs(denoised(case, folder, io) - io["denoised"]).max()
        figures["denoised_difference"] = float(error / np.abs(io["denoised"]).max())
    return figures


def denoised(case: dict[str, Any], folder: Path, io: dict[str, np.ndarray]) -> np.ndarray:
    """Returns our prediction of the clean images, by the process of the checkpoint in a folder."""
    path = folder / case.get("file", "")
    foreign = SOURCES[case["format"]].make(path=path, settings=case.get("settings", ""))
    config = configured(default_config(), foreign.fields, ())
    exp = build.build(config, foreign.image_shape, config.model.num_classes, foreign.class_names)
    point = exp.model.process.at(jax.numpy.asarray(io["time"]))
    predict = jax.jit(exp.model.predict)
    return np.asarray(predict(foreign.params, io["noised"], point, io.get("labels")).x0)


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all by default")
    parser.add_argument("--peer_python", required=True, help="Python with the peers")
    parser.add_argument("--code", type=Path, help="folder with checkouts of the peers' code")
    parser.add_argument("--write_fixtures", action="store_true", help="write those of tiny cases")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    figures, rows = {}, []
    for name in arguments.cases or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            theirs(arguments.peer_python, arguments.code, case, folder)
            if case.get("fixture") and arguments.write_fixtures:
                shutil.copytree(folder, FIXTURES / name, dirs_exist_ok=True)
            figures[name] = row = compare(case, folder)
        rows.append([name, f"{row['parameters']:,}", f"{row['relative_difference']:.1e}"])
        rows[-1].append(f"{row['denoised_difference']:.1e}" if "denoised_difference" in row else "")
    header = ["network", "parameters", "largest difference / largest output", "of x_0"]
    report.print_table(header, rows)
    report.write(arguments.out, figures)
    differences = [
        value
        for row in figures.values()
        for name, value in row.items()
        if name.endswith("difference")
    ]
    return int(max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
