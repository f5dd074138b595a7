"""Writes the DDIM samples of guided-diffusion with a classifier, with which a test compares ours.

The networks are the fixtures guided_tiny_heads and classifier_tiny; it runs in the environment of the peers.

  /path/to/venv/bin/python benchmarks/parity/classifier_guidance_peer.py --code=FOLDER
"""

# pyright: reportMissingImports=false

import argparse
import json
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parents[2] / "tests/interchange/fixtures"
CASES = json.loads(Path(__file__).with_name("networks.json").read_text())
STEPS, SCALE, LABELS = "ddim10", 5.0, (3, 8)


def main() -> None:
    """Writes guided.npz: x_T, labels, scale, and the samples with and without the classifier."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=Path, required=True, help="folder of guided-diffusion")
    sys.path.insert(0, str(parser.parse_args().code / "guided-diffusion"))
    for name in ("blobfile", "mpi4py"):  # Neither is used here.
        sys.modules.setdefault(name, types.ModuleType(name))
    from guided_diffusion import script_util
    from networks_openai_peer import make_classifier

    flags = argparse.ArgumentParser()
    defaults = script_util.model_and_diffusion_defaults()
    script_util.add_dict_to_argparser(flags, defaults)
    words = shlex.split(CASES["guided_tiny_heads"]["settings"])
    options = vars(flags.parse_args([*words, "--timestep_respacing", STEPS]))
    model, diffusion = script_util.create_model_and_diffusion(**options)
    classifier = make_classifier(CASES["classifier_tiny"], script_util)
    for network, folder in ((model, "guided_tiny_heads"), (classifier, "classifier_tiny")):
        network.load_state_dict(torch.load(FIXTURES / folder / "model.pt", weights_only=True))
        network.eval()
    labels = torch.tensor(LABELS)

    def gradient(x, t, y=None):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_probs = torch.log_softmax(classifier(x, t), -1)[range(len(x)), labels]
            return torch.autograd.grad(log_probs.sum(), x)[0] * SCALE

    x_t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        plain, guided = (
            diffusion.ddim_sample_loop(
                model, x_t.shape, noise=x_t, cond_fn=cond_fn, device="cpu", model_kwargs={}
            )
            for cond_fn in (None, gradient)
        )
    arrays = {"x_t": x_t, "plain": plain, "guided": guided}
    np.savez(
        FIXTURES / "classifier_tiny/guided.npz",
        labels=np.asarray(LABELS, np.int32),
        scale=np.float32(SCALE),
        times=np.asarray(sorted(diffusion.timestep_map), np.float64),
        **{name: array.permute(0, 2, 3, 1).numpy() for name, array in arrays.items()},
    )


if __name__ == "__main__":
    main()
