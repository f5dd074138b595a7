"""The side of score_sde_pytorch of `networks.py`: the case as JSON, and the folder to write to."""

# pyright: reportMissingImports=false

import importlib
import json
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torch.utils.cpp_extension
from networks_peer import Denoised, images, randomize, serve, write


def main() -> None:
    """Writes model.pth and io.npz, made by the library's own classes from its own config."""
    case, folder = json.loads(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(case["code"]) / "score_sde_pytorch"))
    # On the CPU the filters are torch's own operations; the ones in CUDA are not compiled.
    torch.utils.cpp_extension.load = lambda *_, **__: None
    for name in ("ncsnpp", "ddpm"):
        importlib.import_module(f"models.{name}")
    utils, sdes = importlib.import_module("models.utils"), importlib.import_module("sde_lib")
    ema_module = importlib.import_module("models.ema")
    name, *words = shlex.split(case["settings"])
    config = config_of(name, words)
    net = utils.create_model(config).cpu()
    randomize(net)
    for module in net.modules():
        if type(module).__name__ == "GaussianFourierProjection":
            module.W.data.copy_((16 * torch.randn(module.W.shape)).half().float())
    ema = ema_module.ExponentialMovingAverage(net.parameters(), decay=0.999)
    averaged = [p.detach().clone() for p in ema.shadow_params]
    with torch.no_grad():  # What is trained is something else.
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_((parameter / 2).half().float())
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=2e-4)
    optimizer.param_groups[0]["lr"] = np.float64(1e-4) * np.minimum(3 / 5000, 1.0)
    small = case.get("fixture")
    state = {
        "optimizer": optimizer.state_dict(),
        "model": {k: v.half() if small else v for k, v in net.state_dict().items()},
        "ema": ema.state_dict(),
        "step": 7,
    }
    state["ema"]["shadow_params"] = [p.half() if small else p for p in averaged]
    torch.save(state, f"{folder}/model.pth")
    ema.copy_to(net.parameters())
    measure(case, folder, config, utils, sdes, net.module)


def config_of(name, words):
    """Returns their config, with `--FLAG VALUE` of the network changed."""
    stub = types.ModuleType("ml_collections")
    stub.ConfigDict = ConfigDict
    sys.modules["ml_collections"] = stub
    config = importlib.import_module("configs." + name.replace("/", ".")).get_config()
    config.device = "cpu"
    config.model.setdefault("num_scales", 1000)
    for flag, value in zip(words[::2], words[1::2], strict=True):
        flag = flag.removeprefix("--")
        group = config.data if flag in config.data else config.model
        old = group[flag]
        if isinstance(old, tuple):
            group[flag] = tuple(map(int, value.split(",")))
        else:
            group[flag] = type(old)(value)
    return config


class ConfigDict(dict):
    """What the configs use of ml_collections."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def measure(case, folder, config, utils, sdes, net):
    """Writes the output of the network, and what its score function says of the clean images."""
    kind, batch = config.training.sde, case.get("batch", 2)
    n, continuous = config.model.num_scales, config.training.continuous
    u = torch.linspace(0.9, 0.3, batch)
    if not continuous:
        u = (u * (n - 1)).round() / (n - 1)
    if kind == "vesde":
        sde = sdes.VESDE(config.model.sigma_min, config.model.sigma_max, n)
    else:
        sde = {"vpsde": sdes.VPSDE, "subvpsde": sdes.subVPSDE}[kind](0.1, 20.0, n)
    x = images(case)  # Of size 1, whatever the noise: what is large hides what is small.
    given = []
    hook = net.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    score = utils.get_score_fn(sde, net, train=False, continuous=continuous)
    with torch.inference_mode():
        found = score(x, u)
    hook.remove()
    inputs, label = (
        given_tensor.clone() for given_tensor in given[0]
    )  # Not of the inference mode, for `serve`.
    signal, std = marginal(sde, kind, continuous, u)
    per_image = (slice(None), None, None, None)
    x0 = (x + std[per_image] ** 2 * found) / signal[per_image]
    scaled = 2 * inputs - 1 if kind == "vesde" else inputs  # Pixels in [-1, 1].
    if kind == "vesde":
        x, x0, std = 2 * x - 1, 2 * x0 - 1, 2 * std
    time = std.log() if kind == "vesde" else 999 * u if continuous else (u * (n - 1)).round()

    def forward():
        output = net(inputs, label)
        return output * (std / 2)[per_image] if kind == "vesde" else output

    t = (std / 2).log() if kind == "vesde" and continuous else label
    write(folder, scaled, t, forward, denoised=Denoised(x, time, x0))
    serve(case, forward, net)


def marginal(sde, kind, continuous, u):
    """Returns signal and standard deviation of the noise, of the library's pixels."""
    if kind == "vpsde" and not continuous:
        step = (u * (sde.N - 1)).round().long()
        return sde.sqrt_alphas_cumprod[step], sde.sqrt_1m_alphas_cumprod[step]
    mean, std = sde.marginal_prob(torch.ones(len(u), 1, 1, 1), u)
    return mean.expand(len(u), 1, 1, 1)[:, 0, 0, 0], std


if __name__ == "__main__":
    main()
