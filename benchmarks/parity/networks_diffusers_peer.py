"""diffusers' side of `networks.py`: the case as JSON, and the folder to write to."""

# pyright: reportMissingImports=false

import json
import sys

import torch
from diffusers import DDPMScheduler, UNet2DModel
from networks_peer import images, randomize, serve, write


def main() -> None:
    """Writes the folder of a pipeline, with weights in float16 if the case is a fixture: they are such numbers."""
    case, folder = json.loads(sys.argv[1]), sys.argv[2]
    model = UNet2DModel(sample_size=case["size"], **case["options"])
    randomize(model)
    x, classes = images(case), case["options"].get("num_class_embeds")
    t = torch.linspace(3, 900, len(x)).round()
    labels = torch.arange(len(x)) * (classes - 1) // max(len(x) - 1, 1) if classes else None
    fourier = case["options"].get("time_embedding_type") == "fourier"
    # Their time is the noise level, by which the output is divided; our network is given its logarithm.
    scale = t[:, None, None, None] if fourier else 1.0

    def forward():
        return model(x, t, class_labels=labels).sample * scale

    write(folder, x, t.log() if fourier else t, forward, labels)
    if case.get("fixture"):
        model = model.half()
    model.save_pretrained(f"{folder}/unet")
    DDPMScheduler(**case.get("scheduler", {})).save_pretrained(f"{folder}/scheduler")
    serve(case, forward, model)


if __name__ == "__main__":
    main()
