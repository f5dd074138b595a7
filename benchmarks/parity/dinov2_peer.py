"""The other side of `parity/dinov2.py`, run by the peer's own interpreter: transformers' `Dinov2Model`.

Arguments: the network's size as JSON, and the file for the features. Those of `transformers/HxW` are the model's own;
for `hub/HxW` the position embeddings are resized with the scale that the model of torch hub passes.
"""

# pyright: reportMissingImports=false

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision_python  # noqa: F401 - Before transformers, which imports torchvision.
from random_inputs import SIZES, random_images, random_weights
from safetensors.numpy import load_file, save_file
from torch.nn import functional
from transformers import Dinov2Config, Dinov2Model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resized_like_hub(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Returns the position embeddings for grid x grid patches."""
    old, width = round((positions.shape[1] - 1) ** 0.5), positions.shape[2]
    patches = positions[:, 1:].reshape(1, old, old, width).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / old
    new = functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    assert new.shape[2:] == (grid, grid)
    return torch.cat([positions[:, :1], new.flatten(2).transpose(1, 2)], dim=1)


def random_model(size: dict[str, int]) -> Dinov2Model:
    """Returns a model whose file has random weights: the names of tensors in files are not those in memory."""
    config = Dinov2Config(
        hidden_size=size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        patch_size=size["patch"],
        image_size=size["patch"] * size["trained_grid"],
    )
    with tempfile.TemporaryDirectory() as folder:
        Dinov2Model(config).save_pretrained(folder)
        file = Path(folder, "model.safetensors")
        shapes = {name: array.shape for name, array in load_file(file).items()}
        save_file(random_weights(shapes), file, {"format": "pt"})
        return Dinov2Model.from_pretrained(folder).eval()


@torch.inference_mode()
def main() -> None:
    """Writes the features of all images."""
    size, output = json.loads(sys.argv[1]), sys.argv[2]
    model = random_model(size)
    embeddings, found = model.embeddings, {}
    own = embeddings.interpolate_pos_encoding
    for way in ("transformers", "hub"):
        embeddings.interpolate_pos_encoding = (
            own
            if way == "transformers"
            else lambda *_: resized_like_hub(embeddings.position_embeddings, 224 // size["patch"])
        )
        for height, width in SIZES:
            x = torch.from_numpy(random_images((height, width))).permute(0, 3, 1, 2).float()
            x = functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True) / 255
            x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
            found[f"{way}/{height}x{width}"] = model(x).last_hidden_state[:, 0].numpy()
    np.savez(output, **found)


if __name__ == "__main__":
    main()
