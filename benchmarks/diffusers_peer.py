"""The other side of `unet_vs_diffusers.py`, run by the peer's own interpreter: torch and diffusers.

Takes two JSON objects on its command line (the network's sizes; {"tf32": bool, "compile": bool}), then one a
line on standard input, {"what": "forward" or "step", "autocast": bool, "passes": int}, and answers each with
the seconds a pass took and the CPU seconds that it used while it waited for the request. It computes on the GPU
if torch sees one, and then waits for all passes of a request at once.
"""

# pyright: reportMissingImports=false

import json
import os
import sys
import time

import diffusers
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(size: dict) -> torch.nn.Module:
    """Returns the U-Net of Ho et al. (2020) as diffusers builds it, in channels-last layout."""
    levels = [size["image"][0] // 2**level for level in range(len(size["channel_mult"]))]
    kinds = ["Attn" if level in size["attention_resolutions"] else "" for level in levels]
    model = diffusers.UNet2DModel(
        sample_size=size["image"][0],
        in_channels=size["image"][2],
        out_channels=size["image"][2],
        block_out_channels=tuple(size["channels"] * mult for mult in size["channel_mult"]),
        layers_per_block=size["num_res_blocks"],
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=None,  # One head, as in the paper.
        norm_num_groups=size["groups"],
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        dropout=0.0,
    )
    return model.to(memory_format=torch.channels_last)


class Peer:
    """A model, its optimizer and its averaged parameters, on random images.

    Args:
      size: Sizes of the network and the batch.
      compile: Whether the network goes through torch.compile.
    """

    def __init__(self, size: dict, compile: bool = False) -> None:
        torch.manual_seed(0)
        height, width, channels = size["image"]
        shape = (size["batch_size"], channels, height, width)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8).to(
            DEVICE, memory_format=torch.channels_last
        )
        model = make_model(size).to(DEVICE)
        self.model = torch.compile(model) if compile else model
        self.parameters = list(model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.adam = torch.optim.Adam(self.parameters, lr=2e-4, fused=True)
        alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
        self.signal = alpha_bar.sqrt().float().to(DEVICE)
        self.noise = (1 - alpha_bar).sqrt().float().to(DEVICE)

    def forward(self, autocast: bool) -> None:
        """One forward pass."""
        x = self.images / 127.5 - 1
        t = torch.arange(len(x), device=DEVICE)
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            self.model(x, t)

    def step(self, autocast: bool) -> None:
        """One training step: noise, loss, gradients, clipping, Adam, moving average."""
        x0 = self.images / 127.5 - 1
        t = torch.randint(0, 1000, (len(x0),), device=DEVICE)
        eps = torch.randn_like(x0)
        signal, noise = self.signal[t, None, None, None], self.noise[t, None, None, None]
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            predicted = self.model(signal * x0 + noise * eps, t).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), eps)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1e-4)


def wait() -> None:
    """Waits for the GPU, if there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Answers requests until standard input ends."""
    torch.set_num_threads(os.cpu_count() or 1)
    size, settings = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    torch.backends.cuda.matmul.allow_tf32 = settings["tf32"]
    torch.backends.cudnn.allow_tf32 = settings["tf32"]
    torch.backends.cudnn.benchmark = True  # Tries the algorithms of each convolution, as XLA does.
    peer = Peer(size, settings["compile"])
    hello = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        **settings,
        "parameters": sum(parameter.numel() for parameter in peer.parameters),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
    print(json.dumps(hello), flush=True)
    slept = time.process_time()
    for line in sys.stdin:
        idle = time.process_time() - slept
        request = json.loads(line)
        work = {"forward": peer.forward, "step": peer.step}[request["what"]]
        started = time.perf_counter()
        for _ in range(request["passes"]):
            work(request["autocast"])
        wait()
        seconds = (time.perf_counter() - started) / request["passes"]
        print(json.dumps({"seconds": seconds, "idle_cpu_seconds": idle}), flush=True)
        slept = time.process_time()


if __name__ == "__main__":
    main()
