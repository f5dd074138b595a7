"""What to run next: the last lines of a command that has done its job."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.commands.help_page import COMMAND
from diffusion_jax.commands.modes import MODES, Mode
from diffusion_jax.commands.run_config import has_run


def next_steps(
    mode: Mode, workdir: Path, file: str | None, assignments: Sequence[tuple[str, str]]
) -> list[str]:
    """Returns one line for each command that follows from one that is done.

    A step on a run names its workdir, and such fields of this command as decide something in that mode too, so that
    images are measured as they were drawn. What trained the run is in its config already.

    Args:
      mode: What was done.
      workdir: Its folder.
      file: What `--config` named; None: nothing.
      assignments: Its fields, ("group.field", "value").
    """
    lines = []
    for step in mode.next:
        found, follower = step.more(workdir), MODES[step.mode]
        if found is None or follower.works_on_run and not has_run(workdir):
            continue
        words = [] if step.mode == "train" else [f"--mode={step.mode}"]
        words += [] if follower.works_on_run or file is None else [f"--config={file}"]
        words.append(f"--workdir={workdir}")
        for name, value in assignments:
            kept = mode.works_on_run and follower.decides(name) or not follower.works_on_run
            words += [f"--config.{name}={value}"] if kept else []
        text = " ".join([COMMAND, *map(shlex.quote, words), *step.flags.split(), *found.split()])
        lines.append(f"next, {step.what}{step.aside(workdir)}: {text}")
    return lines
