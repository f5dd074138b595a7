"""diffusers' side of `exported.py`: the folder of an export, and the number of DDIM steps."""

# pyright: reportMissingImports=false

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel


def main() -> None:
    """Loads network and scheduler, and writes the network's output and the images to theirs.npz."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    model = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    given = dict(np.load(folder / "given.npz"))
    x, t = torch.from_numpy(given["x"]), torch.from_numpy(given["t"])
    labels = torch.from_numpy(given["labels"]).long() if "labels" in given else None
    scheduler.set_timesteps(steps)
    with torch.inference_mode():
        output = model(x, t, class_labels=labels).sample
        for time in scheduler.timesteps:
            x = scheduler.step(model(x, time, class_labels=labels).sample, time, x).prev_sample
    np.savez(folder / "theirs.npz", output=output.numpy(), images=x.numpy())


if __name__ == "__main__":
    main()
