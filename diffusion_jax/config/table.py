"""The table of all fields of the config, by "group.field".

Defaults, checks, the rules of a resume, `--help=FIELDS` and docs/config.md all come from here. Names stand for
what other modules register (tests compare them), so that reading the table loads no JAX.
"""

from diffusion_jax.config.settable import SETTABLE
from diffusion_jax.config.training import TRAINING

GROUPS = {
    "": "fields without a group",
    "data": "the images, and how they are prepared",
    "model": "the network",
    "process": "how images become noise, and what the network predicts",
    "loss": "what training minimises",
    "optimizer": "Adam, its learning rate, and the average of the weights (EMA)",
    "train": "length of the training, its batches, and what happens besides",
    "sampler": "how noise becomes images",
    "sample": "what --mode=sample draws",
    "edit": "what --mode=inpaint and --mode=interpolate do with images",
    "eval": "the held-out loss, and what --mode=evaluate measures",
    "mesh": "how the work is spread over devices",
}

FIELDS = {**TRAINING, **SETTABLE}


def group_of(name: str) -> str:
    """Returns the group of "group.field", "" for a field without one."""
    return name.rpartition(".")[0]
