"""The command line: flags, dispatch to a mode, one-line errors, and the exit status.

Exit status: 0 the job is complete; 75 a signal stopped it after a save, run it again to continue; 2 wrong input;
128 + n a second signal, of number n, ended it at once; 1 anything else.
"""

from __future__ import annotations

if __name__ == "__main__":
    from diffusion_jax.console import begin

    begin()

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from diffusion_jax.commands.answers import show_warning, tell
from diffusion_jax.commands.command_line import parse
from diffusion_jax.commands.modes import MODES, Mode
from diffusion_jax.commands.signals import handled
from diffusion_jax.errors import InputError, reason
from diffusion_jax.lifecycle import ownership, stopping


def _process_id(flags: argparse.Namespace) -> Any:
    """Returns this process's `ProcessId` from the flags, or None."""
    from diffusion_jax.parallel.join import ProcessId

    given = flags.coordinator, flags.num_processes, flags.process_id
    if given == (None, None, None):
        return None
    if None in given:
        raise InputError("--coordinator, --num_processes and --process_id are needed together")
    return ProcessId(*given)


def _assert_same_command(flags: argparse.Namespace, config: Any) -> None:
    """Raises if the processes of a run were started with different commands; only data folders may differ."""
    from diffusion_jax import config as config_lib
    from diffusion_jax.parallel import distributed

    own = ("data.source_dir", "data.cache_dir")
    fields = {name: value for name, value in config_lib.fields(config) if name not in own}
    distributed.assert_same_command(
        "command", {"--mode": flags.mode, "--workdir": flags.workdir, **fields}
    )


def _import_jax() -> Any:
    """Imports JAX, which reads its environment variables at import."""
    try:
        import jax
    except ValueError as error:
        raise InputError(f"invalid environment variable for JAX: {reason(error)}") from error
    return jax


def _config_of(
    mode: Mode, flags: argparse.Namespace, assignments: list[tuple[str, str]], workdir: Path
) -> tuple[Any, str | None]:
    """Returns the validated config, from the file or the run, and a note if the file is ignored.

    Raises:
      InputError: The file, a field or the run is wrong.
    """
    from diffusion_jax import config as config_lib
    from diffusion_jax.commands import run_config
    from diffusion_jax.experiment import build

    file, note = None if flags.config is None else config_lib.load_file(flags.config), None
    if mode.makes_run:
        config = config_lib.default_config()
        config_lib.override(config, assignments)
        return config, note
    if mode.works_on_run:
        config = run_config.load_config(workdir, assignments, mode)
        if file is not None and not run_config.has_run(workdir):
            raise InputError(
                f"--config={flags.config} describes a run, but there is none in {workdir}; name its --workdir, or "
                "leave --config out"
            )
        if file is not None:
            note = run_config.describe_ignored_fields(file, config, assignments)
            if mode.same_process:
                run_config.check_trained(file, config, f"the run in {workdir}")
    else:
        if file is None and not run_config.has_run(workdir):
            raise InputError(
                f"--workdir: no run in {workdir} to continue; --config=FILE, such as "
                "--config=configs/digits.py, begins one"
            )
        config = run_config.read_config(workdir) if file is None else file
        config_lib.override(config, assignments)
    build.validate(config, trained=mode.works_on_run)
    return config, note


def run(argv: list[str], started: float) -> int:
    """Runs a command and returns its exit status.

    Raises:
      InputError: The input is wrong.
      RunError: The job cannot continue.
      Stopped: A signal arrived.
    """
    flags, assignments = parse(argv)
    if "://" not in flags.workdir:
        return _run(flags, assignments, Path(flags.workdir), started)
    _import_jax()
    from diffusion_jax.commands.bucket_workdir import local_folder
    from diffusion_jax.data.loading import default_cache_dir

    if MODES[flags.mode].makes_run:
        raise InputError(
            f"--mode={flags.mode} makes its run in a folder; copy that to {flags.workdir} afterwards"
        )
    with local_folder(flags.workdir, default_cache_dir()) as folder:
        return _run(flags, assignments, folder, started)


def _run(
    flags: argparse.Namespace, assignments: list[tuple[str, str]], workdir: Path, started: float
) -> int:
    mode = MODES[flags.mode]
    _prepare_jax()
    config, note = _config_of(mode, flags, assignments, workdir)
    _check_workdir(mode, workdir)
    stopping.check()
    if not flags.topology:  # None of its processes is here to be joined.
        _join(flags, config, note)
    command = {**vars(flags), "started": started, "assignments": assignments}
    status = mode.run(config, workdir, command)
    if status == 0:
        _tell_next_steps(mode, workdir, flags, assignments)
    return status


def _tell_next_steps(
    mode: Mode, workdir: Path, flags: argparse.Namespace, assignments: list[tuple[str, str]]
) -> None:
    """Prints what to run next; of several processes, the first one does."""
    from diffusion_jax.commands.next_steps import next_steps
    from diffusion_jax.parallel import distributed

    if not distributed.is_another_than_first():
        for line in next_steps(mode, workdir, flags.config, assignments):
            print(line, file=sys.stderr)


def _prepare_jax() -> None:
    """Imports JAX and pins its settings, whatever the environment says."""
    _import_jax()
    from diffusion_jax.commands import compiling, jax_settings

    jax_settings.pin_settings()
    jax_settings.check_xla_flags()
    compiling.announce_long_compilations()


def _check_workdir(mode: Mode, workdir: Path) -> None:
    """Raises if results could not be written to the workdir at the end of a long job."""
    from diffusion_jax.commands.environment import check_layout
    from diffusion_jax.reporting import results

    check_layout(workdir)
    results.check(workdir, mode.name)


def _join(flags: argparse.Namespace, config: Any, note: str | None) -> None:
    """Joins the processes of this run and enables the compilation cache."""
    from diffusion_jax.commands import jax_settings
    from diffusion_jax.parallel import join

    join.initialize(_process_id(flags))
    _assert_same_command(flags, config)
    if note and _import_jax().process_index() == 0:
        print(note, file=sys.stderr)
    jax_settings.keep_compiled_programs(config.data.cache_dir, _compiled_programs(flags.workdir))


def _compiled_programs(workdir: str) -> str | None:
    """Returns where a run in a bucket keeps its compiled programs; None of any other run."""
    from diffusion_jax.commands.bucket_workdir import COMPILED

    return f"{workdir.rstrip('/')}/{COMPILED}" if "://" in workdir else None


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and reports errors in one line on standard error."""
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
