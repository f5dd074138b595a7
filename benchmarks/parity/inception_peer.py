"""The other side of `parity/inception.py`, run by the peers' own interpreter: pytorch-fid, clean-fid, torch-fidelity.

Arguments: an npz file of images, N x H x W x 3 of uint8 each, and the file for the outputs. Those of FEATURES/NAME are
features, and `fid` is pytorch-fid's distance of the features of the images `first` and `second`.
"""

# pyright: reportMissingImports=false

import sys
import tempfile

import numpy as np
import torch
import torchvision_python  # noqa: F401

# isort: split
import pytorch_fid.inception
import torchvision
from cleanfid.resize import make_resizer
from pytorch_fid.fid_score import calculate_frechet_distance
from random_inception import random_weights
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns pytorch-fid's and torch-fidelity's network with the same random weights."""
    shapes = {}

    def made(*_: object, **__: object) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(w) for name, w in random_weights(shapes).items()}

    empty = torchvision.models.inception_v3(
        num_classes=1008, aux_logits=False, weights=None, init_weights=False
    )
    shapes.update({name: tuple(w.shape) for name, w in empty.state_dict().items()})
    pytorch_fid.inception.load_state_dict_from_url = made
    fid = pytorch_fid.inception.InceptionV3([3]).eval()
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(made(), file.name)
        fidelity = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], file.name)
    return fid, fidelity.eval()


@torch.inference_mode()
def main() -> None:
    """Writes the features of all images."""
    given, output = sys.argv[1:]
    fid, fidelity = networks()
    clean = make_resizer("PIL", False, "bicubic", (299, 299))
    found = {}
    for name, images in np.load(given).items():
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        batches = x.split(16)
        found[f"pytorch/{name}"] = torch.cat([fid(b / 255)[0][..., 0, 0] for b in batches]).numpy()
        if name in ("first", "second"):
            continue
        resized = torch.from_numpy(np.stack([clean(image) for image in images]))
        fid.resize_input = False
        # The network itself computes 2 x - 1.
        inputs = ((resized.permute(0, 3, 1, 2) - 128) / 128 + 1) / 2
        found[f"clean/{name}"] = fid(inputs)[0][..., 0, 0].numpy()
        fid.resize_input = True
        features, logits = fidelity(x)
        found[f"tensorflow/{name}"], found[f"logits/{name}"] = features.numpy(), logits.numpy()
    if "pytorch/first" in found:
        moments = []
        for name in ("pytorch/first", "pytorch/second"):
            moments += [found[name].mean(axis=0), np.cov(found[name], rowvar=False)]
        found["fid"] = np.array(calculate_frechet_distance(*moments))
    np.savez(output, **found)


if __name__ == "__main__":
    main()
