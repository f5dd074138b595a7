"""Compares the numbers of parameters of our presets with those of the networks that they are named after.

Those of Ho et al. (2020) are compared with diffusers': DDPM in score_sde has fewer attentions. The exit status is 1 if
a number differs. Ours have one class more, for none, which is not counted.

  PYTHONPATH=benchmarks python benchmarks/parity/presets.py --peer_python=/path/to/venv/bin/python --code=FOLDER
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import report

from diffusion_jax.models.networks import PRESETS, UNet, as_functions, count_parameters, preset

NETWORKS = json.loads(Path(__file__).with_name("networks.json").read_text())
SONG = dict(model_type="SongUNet", channel_mult=[2, 2, 2])
NCSNPP = dict(
    embedding_type="fourier",
    encoder_type="residual",
    channel_mult_noise=2,
    resample_filter=[1, 3, 3, 1],
)


def flags_of(case: str) -> str:
    """Returns the flags of a case of networks.json."""
    return NETWORKS[case]["settings"]


# Preset: size, classes, channels of the output, and the function of presets_peer.py with its arguments.
CASES: dict[str, tuple[int, int, int, list[Any]]] = {
    "ddpm": (32, 0, 3, ["diffusers", NETWORKS["diffusers_cifar10"]["options"]]),
    "ddpm_256": (256, 0, 3, ["diffusers", NETWORKS["diffusers_256"]["options"]]),
    "iddpm": (32, 0, 6, ["openai", "improved-diffusion", flags_of("improved_cifar10")]),
    "iddpm_64": (64, 0, 6, ["openai", "improved-diffusion", flags_of("improved_64")]),
    "adm_64": (64, 1000, 6, ["openai", "guided-diffusion", flags_of("guided_64")]),
    "adm_128": (128, 1000, 6, ["openai", "guided-diffusion", flags_of("guided_128")]),
    "adm_256": (256, 1000, 6, ["openai", "guided-diffusion", flags_of("guided_256")]),
    "ddpmpp": (32, 0, 3, ["score_sde", "vp/cifar10_ddpmpp_continuous"]),
    "ddpmpp_deep": (32, 0, 3, ["score_sde", "vp/cifar10_ddpmpp_deep_continuous"]),
    "ncsnpp": (32, 0, 3, ["score_sde", "ve/cifar10_ncsnpp_continuous"]),
    "ncsnpp_deep": (32, 0, 3, ["score_sde", "ve/cifar10_ncsnpp_deep_continuous"]),
    "ncsnpp_256": (256, 0, 3, ["score_sde", "ve/church_ncsnpp_continuous"]),
    "edm_ddpmpp": (32, 0, 3, ["edm", 32, 0, SONG]),
    "edm_ncsnpp": (32, 0, 3, ["edm", 32, 0, {**SONG, **NCSNPP}]),
    "edm_adm": (64, 1000, 3, ["edm", 64, 1000, {"model_type": "DhariwalUNet"}]),
}


def ours(name: str) -> int:
    """Returns the number of a preset's parameters."""
    size, classes, outputs, _ = CASES[name]
    unet = UNet(**preset(name), num_classes=classes, out_channels=outputs)
    shapes = jax.eval_shape(as_functions(unet, (size, size, 3)).init, jax.random.key(0))
    row = shapes["class"]["embedding"].shape[1] if classes else 0
    return count_parameters(shapes) - row


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer_python", required=True, help="Python with the peers")
    parser.add_argument("--code", required=True, help="folder with checkouts of the peers' code")
    arguments = parser.parse_args()
    assert set(CASES) == set(PRESETS)
    asked = json.dumps({name: case[-1] for name, case in CASES.items()})
    script = Path(__file__).with_name("presets_peer.py")
    command = [arguments.peer_python, str(script), arguments.code, asked]
    theirs = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = {name: (ours(name), theirs[name]) for name in CASES}
    rows = [[name, f"{mine:,}", f"{other:,}"] for name, (mine, other) in found.items()]
    report.print_table(["preset", "ours", "theirs"], rows)
    return int(any(mine != other for mine, other in found.values()))


if __name__ == "__main__":
    sys.exit(main())
