"""Images a second of the extractor `inception` and of pytorch-fid's network on torch, same weights, images and cores.

Each side resizes 32x32 images and computes their features, batch after batch, in a process of its own that has run one
batch before. The sides alternate; reported are the medians of the seconds and of the CPU seconds (which other
programs on the machine disturb less), and the ratio. The exit status is 1 if it is below the bound.

  PYTHONPATH=benchmarks:benchmarks/parity python benchmarks/inception_speed.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
from random_inception import pictures, random_weights

AT_LEAST = 1.2


def ours(batch: int) -> Callable[[np.ndarray], object]:
    """Returns our side as the command runs it: a device for each core."""
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    from diffusion_jax.features import inception
    from diffusion_jax.features.networks.inception import tensors
    from diffusion_jax.parallel.map_batches import map_batches
    from diffusion_jax.parallel.sharding import make_mesh

    weights = random_weights({**tensors(), "fc.weight": (1008, 2048)})
    inception.load_weights = lambda *_: (weights, "")
    extractor = inception.inception(Path())
    params = jax.device_put(extractor.params)
    mapped = map_batches(lambda params, x: (extractor.apply(params, x),), make_mesh(), batch)
    return lambda images: mapped((params,), (images,))


def theirs(batch: int) -> Callable[[np.ndarray], object]:
    """Returns torch's side: a thread for each core."""
    import torch  # pyright: ignore[reportMissingImports]
    from inception_peer import networks  # pyright: ignore[reportMissingImports]

    network, _ = networks()
    torch.set_num_threads(os.cpu_count() or 1)

    @torch.inference_mode()
    def run(images: np.ndarray) -> None:
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        for part in x.split(batch):
            network(part)

    return run


def main() -> None:
    """Measures one side, or alternates both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer_python")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=("ours", "theirs"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.side:
        run = {"ours": ours, "theirs": theirs}[args.side](args.batch)
        run(pictures((32, 32), args.batch))
        images = pictures((32, 32), args.images)
        start = time.perf_counter(), time.process_time()
        run(images)
        print(time.perf_counter() - start[0], time.process_time() - start[1])
        return
    cpu: dict[str, list[float]] = {"ours": [], "theirs": []}

    def measured(side: str) -> float:
        python = sys.executable if side == "ours" else args.peer_python
        sizes = [f"--images={args.images}", f"--batch={args.batch}", f"--side={side}"]
        answer = subprocess.run(
            [python, __file__, *sizes], check=True, capture_output=True, text=True
        )
        seconds, of_cpu = map(float, answer.stdout.split()[-2:])
        cpu[side].append(of_cpu)
        return seconds

    seconds = report.alternate(
        {side: lambda side=side: measured(side) for side in cpu}, args.repeats
    )
    rows = [
        (side, args.images / report.median(seconds[side]), report.median(cpu[side]) / args.images)
        for side in cpu
    ]
    ratio, of_cpu = rows[0][1] / rows[1][1], rows[1][2] / rows[0][2]
    report.print_table(("side", "images/s", "CPU s/image"), [*rows, ("ratio", ratio, of_cpu)])
    report.write(args.out, {"rows": rows, "ratio": ratio, "ratio of CPU seconds": of_cpu})
    sys.exit(ratio < AT_LEAST)


if __name__ == "__main__":
    main()
