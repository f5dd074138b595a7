"""guided-diffusion's side of `trajectories.py`: the case as JSON, and the folder to write to."""

# pyright: reportMissingImports=false

import argparse
import importlib
import json
import shlex
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from networks_peer import randomize


def main() -> None:
    """Writes model.pt, and the images that the library's own loop draws."""
    case, folder = json.loads(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(case["code"]) / "guided-diffusion"))
    for name in ("blobfile", "mpi4py"):  # Neither is used here.
        sys.modules.setdefault(name, types.ModuleType(name))
    script = importlib.import_module("guided_diffusion.script_util")
    parser = argparse.ArgumentParser()
    script.add_dict_to_argparser(parser, script.model_and_diffusion_defaults())
    script.add_dict_to_argparser(parser, {"use_ddim": False})
    flags = parser.parse_args(shlex.split(case["settings"]))
    model, diffusion = script.create_model_and_diffusion(
        **script.args_to_dict(flags, script.model_and_diffusion_defaults().keys())
    )
    if "network" in case:
        model.load_state_dict(torch.load(f"{folder}/model.pt", weights_only=True))
        model.eval()
    else:
        randomize(model)
        torch.save(model.state_dict(), f"{folder}/model.pt")
    given = {
        name: torch.from_numpy(array).movedim(-1, -3).contiguous()
        for name, array in np.load(f"{folder}/noise.npz").items()
    }
    index = [diffusion.num_timesteps]
    labels = torch.arange(case["batch"]) * 7
    loop = diffusion.ddim_sample_loop if flags.use_ddim else diffusion.p_sample_loop

    def drawn(x: torch.Tensor) -> torch.Tensor:  # Once in each step.
        index[0] -= 1
        return given["noise"][diffusion.timestep_map[index[0]]]

    with torch.inference_mode(), mock.patch("torch.randn_like", drawn):
        images = loop(
            model,
            given["x_T"].shape,
            noise=given["x_T"],
            clip_denoised=True,
            model_kwargs={"y": labels} if flags.class_cond else {},
        )
    assert not index[0], index
    np.save(f"{folder}/images.npy", images.movedim(1, -1).numpy())


if __name__ == "__main__":
    main()
