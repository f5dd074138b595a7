"""The side of the peers of `presets.py`: the numbers of parameters of their own networks, as JSON.

Frequencies of the time's embedding are counted, though EDM keeps them as a buffer.
"""

# pyright: reportMissingImports=false

import importlib
import json
import shlex
import subprocess
import sys
import types
from pathlib import Path

import torch
import torch.utils.cpp_extension


def openai(code: Path, name: str, flags: str) -> int:
    """Returns the number of a network of improved- or guided-diffusion."""
    sys.path.insert(0, str(code / name))
    for module in ("blobfile", "mpi4py"):
        sys.modules.setdefault(module, types.ModuleType(module))
    script = importlib.import_module(f"{name.replace('-', '_')}.script_util")
    options, words = script.model_and_diffusion_defaults(), shlex.split(flags)
    for flag, value in zip(words[::2], words[1::2], strict=True):
        default = options[flag.removeprefix("--")]
        made = value == "True" if isinstance(default, bool) else type(default)(value)
        options[flag.removeprefix("--")] = made
    return count(script.create_model_and_diffusion(**options)[0])


def diffusers(code: Path, options: dict) -> int:
    """Returns the number of a network of diffusers."""
    del code
    return count(importlib.import_module("diffusers").UNet2DModel(**options))


def score_sde(code: Path, config: str) -> int:
    """Returns the number of a network of score_sde_pytorch."""
    from networks_score_sde_peer import config_of

    sys.path.insert(0, str(code / "score_sde_pytorch"))
    torch.utils.cpp_extension.load = lambda *_, **__: None
    for module in ("ncsnpp", "ddpm"):
        importlib.import_module(f"models.{module}")
    return count(importlib.import_module("models.utils").create_model(config_of(config, [])))


def edm(code: Path, size: int, classes: int, options: dict) -> int:
    """Returns the number of a network of EDM."""
    sys.path.insert(0, str(code / "edm"))
    networks = importlib.import_module("training.networks")
    model = networks.EDMPrecond(size, 3, label_dim=classes, **options).model
    return count(model) + sum(b.numel() for name, b in model.named_buffers() if "freqs" in name)


def count(model: torch.nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Prints the numbers, by preset; each is made by a process of its own, which shares no module."""
    code, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    if len(cases) > 1:
        found = {}
        for name, case in cases.items():
            command = [sys.executable, __file__, str(code), json.dumps({name: case})]
            found |= json.loads(subprocess.run(command, check=True, stdout=-1).stdout)
    else:
        ((name, (library, *arguments)),) = cases.items()
        found = {name: globals()[library](code, *arguments)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
