"""diffusers' side of `trajectories.py`: the case as JSON, and the folder to write to."""

# pyright: reportMissingImports=false

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from networks_peer import randomize


def main() -> None:
    """Writes the folder of a pipeline, and the images that the pipeline draws."""
    case, folder = json.loads(sys.argv[1]), sys.argv[2]
    if Path(folder, "unet").exists():
        model = diffusers.UNet2DModel.from_pretrained(f"{folder}/unet").float().eval()
    else:
        model = diffusers.UNet2DModel(sample_size=case["size"], **case["options"])
        randomize(model)
    kind = getattr(diffusers, case["scheduler"]["_class_name"])
    scheduler = kind.from_config(case["scheduler"])
    if "network" not in case:
        model.save_pretrained(f"{folder}/unet")
    scheduler.save_pretrained(f"{folder}/scheduler")
    given = {
        name: torch.from_numpy(array).movedim(-1, -3).contiguous()
        for name, array in np.load(f"{folder}/noise.npz").items()
    }
    pipeline = {"DDPMScheduler": diffusers.DDPMPipeline, "DDIMScheduler": diffusers.DDIMPipeline}
    run = pipeline[case["scheduler"]["_class_name"]](model, scheduler)
    # Set by hand, since pipelines make a DDIMScheduler of another config.
    run.register_modules(scheduler=scheduler)
    run.set_progress_bar_config(disable=True)
    now: dict[str, Any] = {"noise": given["x_T"]}  # Of the step, or before the first.
    step = scheduler.step

    def kept(output: Any, t: Any, *rest: Any, **named: Any) -> Any:
        now["noise"] = given["noise"][int(t)]
        result = step(output, t, *rest, **named)
        now["images"] = result.prev_sample
        return result

    modules = [
        f"diffusers.{name}.randn_tensor"
        for name in (
            "pipelines.ddpm.pipeline_ddpm",
            "pipelines.ddim.pipeline_ddim",
            "schedulers.scheduling_ddpm",
            "schedulers.scheduling_ddim",
        )
    ]
    with torch.inference_mode(), mock.patch.object(scheduler, "step", kept):
        for module in modules:
            mock.patch(module, lambda *_, **__: now["noise"]).start()
        run(batch_size=case["batch"], output_type="pt", **case["call"])
    # Before the pipeline clips and scales them.
    np.save(f"{folder}/images.npy", now["images"].movedim(1, -1).numpy())


if __name__ == "__main__":
    main()
