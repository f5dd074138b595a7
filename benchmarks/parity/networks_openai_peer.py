"""The side of improved- and guided-diffusion of `networks.py`: the case as JSON, and the folder to write to."""

# pyright: reportMissingImports=false

import argparse
import importlib
import json
import shlex
import sys
import types
from pathlib import Path

import torch
from networks_peer import images, randomize, write


def main() -> None:
    """Writes model.pt and io.npz, made by the library's own functions from its own flags."""
    case, folder = json.loads(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(case["code"]) / case["code_of"]))
    for name in ("blobfile", "mpi4py"):  # Neither is used here.
        sys.modules.setdefault(name, types.ModuleType(name))
    package = case["code_of"].replace("-", "_")
    script = importlib.import_module(f"{package}.script_util")
    parser = argparse.ArgumentParser()
    script.add_dict_to_argparser(parser, script.model_and_diffusion_defaults())
    flags = parser.parse_args(shlex.split(case["settings"]))
    model, diffusion = script.create_model_and_diffusion(
        **script.args_to_dict(flags, script.model_and_diffusion_defaults().keys())
    )
    randomize(model)
    x = images(case)
    # Not powers of two: with 4,000 steps the time is scaled.
    t = torch.linspace(3, flags.diffusion_steps - 100, len(x)).round().long()
    labels = torch.arange(len(x)) * 7 if flags.class_cond else None
    options = {} if labels is None else {"y": labels}
    wrapped = diffusion._wrap_model(model)  # It scales the time.
    write(folder, x, t, lambda: wrapped(x, t, **options), labels)
    state = model.half().state_dict() if case.get("fixture") else model.state_dict()
    torch.save(state, f"{folder}/model.pt")


if __name__ == "__main__":
    main()
