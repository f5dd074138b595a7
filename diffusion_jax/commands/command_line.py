"""The command line: flags, overrides of the config, and help."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffusion_jax.commands.help_page import COMMAND, help_page
from diffusion_jax.commands.modes import MODES, modes_of_flag
from diffusion_jax.errors import InputError, closest, nearest, shortened
from diffusion_jax.options.kinds import Text


class _Parser(argparse.ArgumentParser):
    given: Sequence[str] = ()  # The command line.

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{self._meant(message)} (see --help)")

    def _meant(self, message: str) -> str:
        """Returns what an unknown flag was probably meant to be."""
        unknown = re.match("unrecognized arguments: (?:.*? )??--?([^-= ][^= ]*)", message)
        if unknown is None:
            return ""
        from diffusion_jax.config import FIELDS  # It loads JAX, as all components do.

        flags = {name.removeprefix("--"): name for name in self._option_string_actions}
        flags |= {name: f"--config.{name}" for name in FIELDS}
        close = closest(unknown[1], flags)
        return f"; did you mean {flags[close]}?" if close else ""


def _config_of(argv: Sequence[str]) -> str | None:
    """Returns the file that `--config` names on a command line, wherever it stands."""
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument == "--config":
            return following
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None


class _Help(argparse.Action):
    """Prints the first page of help, all flags, or what the table of config fields says, and ends the command."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *_: Any
    ) -> None:
        if values is None:
            print(help_page())
        elif values.upper() == "FLAGS":
            print(parser.format_help().rstrip())
        else:
            from diffusion_jax import config as config_lib
            from diffusion_jax.config import reference  # It loads JAX, as all components do.

            if path := _config_of(
                getattr(parser, "given", [])
            ):  # Components of its own are listed too.
                config_lib.load_file(path)
            print(reference.help_text(values))
        sys.stdout.flush()
        parser.exit()


class _Completion(argparse.Action):
    """Prints a script with which a shell completes the command, and ends the command."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *_: Any
    ) -> None:
        from diffusion_jax.commands import completion  # It loads JAX, as all components do.

        takers = {
            name: "" if action.nargs == 0 else "="
            for name, action in parser._option_string_actions.items()
            if name.startswith("--") and action.dest != "field"
        }
        print(completion.script(values, [name + end for name, end in takers.items()]), end="")
        sys.stdout.flush()
        parser.exit()


def _parser() -> _Parser:
    parser = _Parser(
        prog=COMMAND,
        allow_abbrev=False,
        add_help=False,
    )
    _add_help(parser)
    parser.add_argument("--config", help="Python file with get_config(), such as configs/digits.py")
    parser.add_argument(
        "--mode", default="train", help=f"one of {', '.join(MODES)} (default: train)"
    )
    parser.add_argument("--workdir", help="folder of the run (default: runs/<config name>)")
    parser.add_argument(
        "--allow_config_change",
        action="store_true",
        help="resume even if the data or config fields that alter the trained result have changed",
    )
    parser.add_argument(
        "--topology",
        help="plan for this slice of TPUs, such as v5e:4x4, or GPUs, such as h100:8, on any machine",
    )
    parser.add_argument(
        "--price", metavar="NUMBER", help="price of a chip-hour, for what a planned training costs"
    )
    _add_interchange(parser)
    _add_processes(parser)
    parser.add_argument(
        "--config.GROUP.FIELD",
        dest="field",
        metavar="VALUE",
        help="override any field of the config, such as --config.train.num_steps=200",
    )
    return parser


def _add_interchange(parser: _Parser) -> None:
    parser.add_argument(
        "--source", metavar="PATH", help="checkpoint to import: a file, a folder or hf://OWNER/NAME"
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="its format, if its files do not tell; of an export: diffusers, single or stablehlo",
    )
    parser.add_argument(
        "--target", metavar="FOLDER", help="folder to export to, or hf://OWNER/NAME"
    )
    parser.add_argument(
        "--source_settings",
        default="",
        metavar="TEXT",
        help="what it does not say of itself, in the words of its library, such as the flags of its training",
    )


def _add_help(parser: _Parser) -> None:
    parser.add_argument(
        "-h",
        "--help",
        action=_Help,
        nargs="?",
        metavar="WHAT",
        help="show the first page of help; --help=FLAGS: this; --help=FIELDS: every field of the config; "
        "--help=train: those of a group; --help=train.num_steps: one field",
    )
    parser.add_argument(
        "--completion",
        action=_Completion,
        metavar="SHELL",
        help="print a script with which bash, zsh or fish completes diffusion-jax: its modes, configs and fields",
    )


def _add_processes(parser: argparse.ArgumentParser) -> None:
    several = parser.add_argument_group(
        "several processes (not needed on TPU pods, nor under srun, mpirun or launch/)"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is reached")
    several.add_argument("--num_processes", metavar="N", type=int, help="how many there are")
    several.add_argument("--process_id", metavar="I", type=int, help="number of this one, from 0")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Splits the command line into flags and ("group.field", "value") overrides.

    Raises:
      InputError: An unknown flag or mode, or a field without a value.
    """
    plain, assignments = [], []
    rest = iter(argv)
    for argument in rest:
        if not argument.startswith("--config."):
            plain.append(argument)
            continue
        name, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = next(rest, None)
            if value is None:
                raise InputError(f"--config.{name} needs a value: --config.{name}=VALUE")
        assignments.append((name, value))
    parser = _parser()
    parser.given = plain
    flags = parser.parse_args(plain)
    _complete(flags, {name for name, _ in assignments})
    from diffusion_jax.addresses import expand  # The help does without.

    flags.workdir = expand(flags.workdir)
    return flags, assignments


def _complete(flags: argparse.Namespace, assigned: set[str]) -> None:
    """Checks the flags, and sets the workdir where it is not given."""
    if flags.mode not in MODES:
        raise InputError(
            f"unknown --mode {flags.mode!r}; choose one of {', '.join(MODES)}.{nearest(flags.mode, MODES)}"
        )
    for name, value in vars(flags).items():
        if value and (owners := modes_of_flag(name)) and flags.mode not in owners:
            named = " and ".join(f"--mode={owner}" for owner in owners)
            raise InputError(f"--{name} is for {named}, not --mode={flags.mode}")
    mode = MODES[flags.mode]
    given = flags.workdir is not None or flags.config is not None
    if not given and not assigned.isdisjoint(mode.instead_of_run):
        flags.workdir = f"runs/{mode.name}"
    if mode.makes_run and not given:
        raise InputError(f"--mode={mode.name} needs --workdir=FOLDER, where it makes a run")
    if mode.makes_run and flags.config is not None:
        raise InputError(f"--config is not for --mode={mode.name}: the checkpoint says what it is")
    if flags.workdir is None:
        if flags.config is None:
            raise InputError(
                "--config=FILE, such as --config=configs/digits.py, or --workdir=FOLDER of a run is needed"
            )
        flags.workdir = f"runs/{Path(flags.config).stem}"
    if not (folder := Text("a folder")).accepts(flags.workdir):
        raise InputError(f"--workdir is {shortened(flags.workdir)}; it must be {folder.allowed}")
