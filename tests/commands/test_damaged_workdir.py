"""A workdir in which something is not what it should be: one line that names it, before any work is done."""

import pytest
from tiny_run import write_config

from diffusion_jax.commands.signals import StopSignals
from diffusion_jax.config import load_file, to_json
from diffusion_jax.errors import InputError
from diffusion_jax.main import MODES, run


def refused(*arguments: str) -> str:
    """Returns the one line by which a command is refused; of the command nothing is begun."""
    with pytest.raises(InputError) as error:
        run(list(arguments), StopSignals(), 0.0)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "damage",
    {
        "cut": lambda path: path.write_text('{"earlier": ['),
        "zeros": lambda path: path.write_bytes(b"\0" * 100),
        "deep": lambda path: path.write_text("[" * 10**5),
        "folder": lambda path: path.mkdir(),
    }.items(),
    ids=lambda damage: damage[0],
)
def test_results_that_cannot_be_added_to_are_refused_before_the_work(tmp_path, mode, damage):
    file = write_config(tmp_path)
    (tmp_path / "config.json").write_text(to_json(load_file(str(file))))
    path = tmp_path / "results" / f"{mode}.json"
    path.parent.mkdir()
    damage[1](path)
    command = f"--config={file}", f"--workdir={tmp_path}", f"--mode={mode}"
    assert refused(*command) == f"{path} does not hold results; move it away"
    path.rmdir() if path.is_dir() else path.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    assert refused(*command) == f"{path.parent} is not a folder; move it away"
