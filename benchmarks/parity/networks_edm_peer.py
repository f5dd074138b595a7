"""The side of EDM of `networks.py`: the case as JSON, and the folder to write to."""

# pyright: reportMissingImports=false

import importlib
import json
import sys
from pathlib import Path

import torch
from networks_peer import Denoised, images, randomize, serve, write
from safetensors.torch import save_file


def main() -> None:
    """Writes model.safetensors and io.npz, made by EDM's own classes."""
    case, folder = json.loads(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(case["code"]) / "edm"))
    networks = importlib.import_module("training.networks")
    classes = case.get("classes", 0)
    net = getattr(networks, case["precond"])(case["size"], 3, label_dim=classes, **case["options"])
    randomize(net)
    freqs = getattr(net.model.map_noise, "freqs", None)
    if freqs is not None:
        freqs.copy_(freqs.half().float())
    x = images({"batch": 3, **case})
    batch = len(x)
    # The last image has no class.
    labels = (torch.arange(batch) - 1) % (classes + 1) if classes else None
    one_hot = None
    if labels is not None:
        one_hot = torch.nn.functional.one_hot(labels, classes + 1)[:, :classes].float()
    sigma, time, signal = levels(case["precond"], net, batch)
    given = []  # What the preconditioning gives to the network.
    hook = net.model.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1]))
    with torch.inference_mode():
        x0 = net(x, sigma, one_hot)
    hook.remove()
    denoised = Denoised(x * signal[:, None, None, None], time, x0)
    time_input = given[0].clone()  # Not of the inference mode, for `serve`.

    def forward():
        return net.model(x, time_input, one_hot)

    write(folder, x, time_input, forward, labels, denoised)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    if case.get("fixture"):
        state = {name: tensor if name == "u" else tensor.half() for name, tensor in state.items()}
    save_file(state, f"{folder}/model.safetensors")
    serve(case, forward, net)


def levels(precond, net, batch):
    """Returns sigma, the time of our process and the signal of some noise levels."""
    if precond == "iDDPMPrecond":
        steps = torch.linspace(990, 10, batch).round()
        sigma = net.u[(net.M - 1 - steps).long()]
        return sigma, steps, (sigma**2 + 1).rsqrt()
    sigma = torch.logspace(-1, 1.3, batch)
    if precond == "VPPrecond":
        return sigma, 999 * net.sigma_inv(sigma), (sigma**2 + 1).rsqrt()
    return sigma, sigma.log(), torch.ones(batch)


if __name__ == "__main__":
    main()
