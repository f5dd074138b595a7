"""The first page of help: what there is to do, and where all the rest is said; it fits a small terminal."""

from __future__ import annotations

from diffusion_jax.commands.modes import MODES

COMMAND = "python -m diffusion_jax.main"
_PAGE = """\
usage: {command} [--mode=MODE] --config=FILE [--config.GROUP.FIELD=VALUE ...]
Denoising diffusion models of images in JAX.

modes:
{modes}

flags:
  --config=FILE                 Python file with get_config(), or a config by name, such as digits
  --workdir=FOLDER              folder of the run (default: runs/<config>); alone, it goes on
  --config.train.num_steps=200  a field of the config, here train.num_steps
  --help=FLAGS: every flag, such as --allow_config_change, --completion=bash, or --topology
  --help=FIELDS: every field of the config; --help=train: a group's; --help=train.num_steps: one

start with: {command} --config=digits
  It trains on small digits, and says at its end where its pictures are and what to run next."""


def help_page() -> str:
    """Returns what `--help` prints, without the last newline: at most 24 lines of at most 100 columns."""
    modes = [f"  {name:11} {mode.help}" for name, mode in MODES.items()]
    modes[0] += " (default)"
    return _PAGE.format(command=COMMAND, modes="\n".join(modes))
