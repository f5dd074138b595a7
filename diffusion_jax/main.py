"""The command line: flags, dispatch to a mode, one clear line for an error, the exit status.

Exit status: 0 the job is complete; 75 stopped by a signal, saved, run it again to go on; 2 wrong input;
128 + n a second signal, number n, ended it at once; 1 anything else.
"""

if (
    __name__ == "__main__"
):  # Before the imports, so that they are done once, and signals meanwhile count.
    from diffusion_jax.commands import huge_pages, signals

    signals.block()
    huge_pages.start_again_with_huge_pages()
    signals.install()

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

from diffusion_jax.commands.answers import show_warning, tell
from diffusion_jax.commands.signals import handled
from diffusion_jax.errors import InputError, nearest, reason, shortened
from diffusion_jax.lifecycle import ownership, stopping
from diffusion_jax.options.kinds import Text

MODES = {
    "train": "train the config's model; continue the run if the workdir holds one",
    "sample": "draw images from a checkpoint of the workdir",
    "inpaint": "draw images that keep a part of given ones, or begin with them: config.edit",
    "interpolate": "draw what lies between images: config.edit",
    "evaluate": "measure a checkpoint: config.eval.metrics, such as bits/dim",
    "plan": "say whether a training fits these devices, or --topology, and how fast it can be",
}
DESCRIPTION = """Denoising diffusion models of images in JAX.

  python -m diffusion_jax.main --config=configs/digits.py
  python -m diffusion_jax.main --config=configs/digits.py --mode=sample --config.sample.num_images=500
"""
EPILOG = "modes:\n" + "\n".join(f"  {name:11} {text}" for name, text in MODES.items())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{self._meant(message)} (see --help)")

    def _meant(self, message: str) -> str:
        """Returns what an unknown flag was probably meant to be."""
        flag = message.rpartition(" --")[2].partition("=")[0]
        if "unrecognized arguments: --" not in message:
            return ""
        from diffusion_jax.config import FIELDS  # It loads JAX, as all components do.

        if flag in FIELDS:
            return f"; did you mean --config.{flag}?"
        known = [name.removeprefix("--") for name in self._option_string_actions]
        return nearest(flag, known)


class _Help(argparse.Action):
    """Prints the help, or what the table of config fields says, and ends the command."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *_: Any
    ) -> None:
        if values is None:
            print(parser.format_help().rstrip())
        else:
            from diffusion_jax.config import reference  # It loads JAX, as all components do.

            print(reference.help_text(values))
        sys.stdout.flush()
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m diffusion_jax.main",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "-h",
        "--help",
        action=_Help,
        nargs="?",
        metavar="FIELDS",
        help="show this; --help=FIELDS: every field of the config; --help=train: those of a group",
    )
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
        "--topology", help="plan for this slice of TPUs, such as v5e:4x4, on any machine"
    )
    several = parser.add_argument_group(
        "several processes (not needed on TPU pods, nor under srun, mpirun or launch/)"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is reached")
    several.add_argument("--num_processes", metavar="N", type=int, help="how many there are")
    several.add_argument("--process_id", metavar="I", type=int, help="number of this one, from 0")
    parser.add_argument(
        "--config.GROUP.FIELD",
        dest="field",
        metavar="VALUE",
        help="override any field of the config, such as --config.train.num_steps=200",
    )
    return parser


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
    flags = _parser().parse_args(plain)
    if flags.mode not in MODES:
        raise InputError(
            f"unknown --mode {flags.mode!r}; choose one of {', '.join(MODES)}.{nearest(flags.mode, MODES)}"
        )
    if flags.allow_config_change and flags.mode != "train":
        raise InputError(f"--allow_config_change is for --mode=train, not --mode={flags.mode}")
    if flags.topology and flags.mode != "plan":
        raise InputError(f"--topology is for --mode=plan, not --mode={flags.mode}")
    if flags.workdir is None:
        if flags.config is None:
            either = "" if flags.mode in ("train", "plan") else "--workdir=FOLDER of the run, or "
            raise InputError(f"{either}--config=FILE is needed, such as --config=configs/digits.py")
        flags.workdir = f"runs/{Path(flags.config).stem}"
    if not (folder := Text("a folder")).accepts(flags.workdir):
        raise InputError(f"--workdir is {shortened(flags.workdir)}; it must be {folder.allowed}")
    from diffusion_jax.addresses import expand  # The help does without.

    flags.workdir = expand(flags.workdir)
    return flags, assignments


def _place(flags: argparse.Namespace) -> Any:
    """Returns this process's place among several, if the flags say it."""
    from diffusion_jax.parallel.join import Place

    given = flags.coordinator, flags.num_processes, flags.process_id
    if given == (None, None, None):
        return None
    if None in given:
        raise InputError("--coordinator, --num_processes and --process_id are needed together")
    return Place(*given)


def _check_alike(flags: argparse.Namespace, config: Any) -> None:
    """Refuses processes of one run that were started with different commands; paths may be each one's own."""
    from diffusion_jax import config as config_lib
    from diffusion_jax.parallel import distributed

    own = ("data.source_dir", "data.cache_dir")
    fields = {name: value for name, value in config_lib.fields(config) if name not in own}
    distributed.check_alike("command", {"--mode": flags.mode, "--workdir": flags.workdir, **fields})


def _import_jax() -> Any:
    """Returns JAX, which reads its variables of the environment as it is imported."""
    try:
        import jax
    except ValueError as error:
        raise InputError(f"the environment says what JAX does not take: {reason(error)}") from error
    return jax


def _config_of(
    flags: argparse.Namespace, assignments: list[tuple[str, str]], workdir: Path
) -> tuple[Any, str | None]:
    """Returns the valid config of the mode, the file's or the run's, and what to say of a file that does not count.

    Raises:
      InputError: A wrong file, field or run.
    """
    from diffusion_jax import config as config_lib
    from diffusion_jax.commands import run_config
    from diffusion_jax.experiment import build

    file, note = None if flags.config is None else config_lib.load_file(flags.config), None
    if flags.mode not in ("train", "plan"):
        config = run_config.load_config(workdir, assignments, flags.mode)
        if file is not None:
            note = run_config.passed_over(file, config, assignments)
            if flags.mode == "evaluate":
                run_config.check_trained(file, config, f"the run in {workdir}")
    elif file is not None:
        config = file
        config_lib.override(config, assignments)
    else:
        raise InputError("--config=FILE is needed, such as --config=configs/digits.py")
    build.validate(config, trained=flags.mode not in ("train", "plan"))
    return config, note


def run(argv: list[str], started: float) -> int:
    """Runs one command; returns the exit status.

    Raises:
      InputError: Wrong input.
      RunError: The job cannot go on.
      Stopped: A signal came.
    """
    flags, assignments = parse(argv)
    if "://" in flags.workdir:
        raise InputError(
            f"--workdir is {flags.workdir!r}; it must be a folder of a file system, not a URL"
        )
    workdir = Path(flags.workdir)
    jax = _import_jax()
    from diffusion_jax.commands.environment import check_layout
    from diffusion_jax.commands.jax_settings import (
        check_xla_flags,
        keep_compiled_programs,
        pin_settings,
    )
    from diffusion_jax.parallel import join
    from diffusion_jax.reporting import results

    pin_settings()
    check_xla_flags()
    config, note = _config_of(flags, assignments, workdir)
    check_layout(workdir)
    results.check(workdir, flags.mode)  # Else what took hours would be lost at its end.
    stopping.check()
    if flags.topology:  # None of its processes is here to be joined.
        from diffusion_jax.commands import plan
        from diffusion_jax.planning.topology import topology_devices

        return plan.plan(config, workdir, topology_devices(flags.topology), flags.topology)
    join.initialize(_place(flags))
    _check_alike(flags, config)
    if note and jax.process_index() == 0:
        print(note, file=sys.stderr)
    keep_compiled_programs(config.data.cache_dir)
    return _start(flags, config, workdir, started)


def _start(flags: argparse.Namespace, config: Any, workdir: Path, started: float) -> int:
    """Starts the mode; returns the exit status."""
    if flags.mode == "plan":
        import jax

        from diffusion_jax.commands import plan

        return plan.plan(config, workdir, jax.devices(), None)
    if flags.mode == "train":
        from diffusion_jax.commands import train

        return train.train(
            config, workdir, started=started, allow_config_change=flags.allow_config_change
        )
    from diffusion_jax.commands import evaluate, inpaint, interpolate, sample

    uses = {
        "sample": sample.sample,
        "inpaint": inpaint.inpaint,
        "interpolate": interpolate.interpolate,
        "evaluate": evaluate.evaluate,
    }
    return uses[flags.mode](config, workdir)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and answers errors with one line on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.showwarning = show_warning
    started = time.monotonic()
    with handled():
        try:
            status, error = run(sys.argv[1:] if argv is None else argv, started), None
            sys.stdout.flush()
        except (Exception, stopping.Stopped) as raised:
            status, error = tell(raised), raised
        finally:  # Also where something else passes through, since the process may live on.
            ownership.release()
        if "jax" in sys.modules:
            from diffusion_jax.parallel import peers

            peers.finish() if error is None else peers.fail(status, reason(error))
    return status


if __name__ == "__main__":
    sys.exit(main())
