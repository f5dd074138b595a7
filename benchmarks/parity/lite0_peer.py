"""The other side of `parity/lite0.py`, run by the peer's own interpreter: the port of EfficientNet-Lite0 to torch.

Arguments: the file of weights, an npz file of images (N x H x W x 3, uint8), and the file for features and logits.
"""

# pyright: reportMissingImports=false

import sys

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch.nn import functional


@torch.inference_mode()
def main() -> None:
    """Writes the features and logits of all images."""
    weights, given, output = sys.argv[1:]
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    found = {}
    for name, images in np.load(given).items():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        x = functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True)
        x = (x.clamp(0, 255) - 127) / 128
        found[f"features/{name}"] = model.extract_features(x).mean(dim=(2, 3)).numpy()
        found[f"logits/{name}"] = model(x).numpy()
    np.savez(output, **found)


if __name__ == "__main__":
    main()
