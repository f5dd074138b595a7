"""From a config to its process."""

from collections.abc import Callable

from ml_collections import ConfigDict

from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.process import Process
from diffusion_jax.processes.schedules import make_schedule


def _ddpm(fields: ConfigDict) -> DDPM:
    return DDPM(
        make_schedule(fields.schedule, fields.num_timesteps, fields.beta_start, fields.beta_end)
    )


# The config's process group -> Process
PROCESSES: dict[str, Callable[[ConfigDict], Process]] = {"ddpm": _ddpm}


def make_process(config: ConfigDict) -> Process:
    """Returns the config's process.

    Raises:
      InputError: A beta for a schedule that has none to set.
    """
    return PROCESSES[config.process.name](config.process)
