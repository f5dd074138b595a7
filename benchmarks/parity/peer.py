"""The other side of `parity/unet.py`, run by the peer's own interpreter: one pass of diffusers' U-Net.

Arguments: the network's sizes as JSON, an npz file of images, times and weights, the file for the output.
"""

# pyright: reportMissingImports=false

import json
import sys

import numpy as np
import torch
from diffusers_peer import make_model


def main() -> None:
    """Loads every weight (one too many or too few is an error), and writes the output."""
    size, given, output = sys.argv[1:]
    arrays = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
    x, t = arrays.pop("x"), arrays.pop("t")
    model = make_model(json.loads(size))
    model.load_state_dict(arrays, strict=True)
    with torch.inference_mode():
        np.save(output, model.eval()(x, t).sample.numpy())


if __name__ == "__main__":
    main()
