"""Completion of the command in shells, by a script that knows all names, so that no TAB starts Python."""

from __future__ import annotations

import shlex
import string
from collections.abc import Callable, Iterable
from typing import NamedTuple

from diffusion_jax import recipes
from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import FIELDS, GROUPS
from diffusion_jax.errors import InputError
from diffusion_jax.interchange import SOURCES
from diffusion_jax.options.kinds import Bool, Choice, Either, FilePath, Kind, Tuple

FILE, FOLDER = "file", "directory"


class Values(NamedTuple):
    """What may follow "--flag=".

    Attributes:
      words: Values that have names.
      paths: FILE, if it may be the path of a file; FOLDER, if of a folder; "" otherwise.
      several: Whether several may stand there, separated by commas.
    """

    words: tuple[str, ...] = ()
    paths: str = ""
    several: bool = False


def script(shell: str, flags: Iterable[str]) -> str:
    """Returns the script for a shell.

    Args:
      shell: A key of SHELLS.
      flags: The command's flags, such as "--mode=", those with a value ending in "=".

    Raises:
      InputError: It is not.
    """
    if shell not in SHELLS:
        raise InputError(f"--completion is {shell!r}; it must be one of {', '.join(SHELLS)}")
    fields = {f"--config.{name}": values_of(field.kind) for name, field in FIELDS.items()}
    given = {
        "--mode": Values(tuple(MODES)),
        "--config": Values(tuple(recipes.names()), FILE),
        "--workdir": Values(paths=FOLDER),
        "--source": Values(paths=FILE),
        "--format": Values(tuple(SOURCES)),
        "--help": Values(("FIELDS", "FLAGS", *filter(None, GROUPS), *FIELDS)),
        "--completion": Values(tuple(SHELLS)),
        **fields,
    }
    return SHELLS[shell]([*flags, *(f"{field}=" for field in fields)], given)


def values_of(kind: Kind) -> Values:
    """Returns what a shell can propose of a kind."""
    if isinstance(kind, Either):
        first, second = values_of(kind.first), values_of(kind.second)
        several = first.several or second.several
        return Values(first.words + second.words, first.paths or second.paths, several)
    if isinstance(kind, Tuple):
        return values_of(kind.item)._replace(several=True)
    if isinstance(kind, Bool):
        return Values(("true", "false"))
    if isinstance(kind, Choice):
        return Values((*kind.names, *(f"{prefix}:" for prefix in kind.prefixes)))
    if isinstance(kind, FilePath):
        return Values(paths=FOLDER if kind.folder else FILE)
    return Values()


class _Template(string.Template):
    delimiter = "@"  # Shells have their own $ and %.


# bash takes "--flag=value" for three words: so the word is read from the line, and only the value is answered.
_BASH = _Template(r"""# Completes diffusion-jax; written by python -m diffusion_jax.main --completion=bash.
_diffusion_jax() {
  local word="${COMP_LINE:0:$COMP_POINT}" mark=$'\1' flag value choices="" paths="" several="" given="" name
  word="${word//\\ /$mark}" word="${word##* }" word="${word//$mark/ }" word="${word//\\/}"
  COMPREPLY=()
  if [[ "$word" != *=* ]]; then
    COMPREPLY=($(compgen -W "@flags" -- "$word"))
    return
  fi
  flag="${word%%=*}" value="${word#*=}"
  [[ "${COMP_WORDBREAKS:-}" == *=* ]] || given="$flag="
  case "$flag" in
@cases
  esac
  if [[ -n "$several" && "$value" == *,* ]]; then
    given+="${value%,*}," value="${value##*,}"
  fi
  COMPREPLY=($(compgen -P "$given" -W "$choices" -- "$value"))
  [[ -z "$paths" ]] || while IFS= read -r name; do
    [[ ! -d "${name/#\~/$HOME}" ]] || name+=/
    printf -v name %q "$name"
    COMPREPLY+=("$given${name/#\\\~/\~}")
  done < <(compgen -A "$paths" -- "$value")
}
complete -o nospace -F _diffusion_jax diffusion-jax
""")

_ZSH = _Template(r"""#compdef diffusion-jax
# Completes diffusion-jax; written by python -m diffusion_jax.main --completion=zsh.
_diffusion_jax() {
  local flag=${PREFIX%%=*} choices= paths= several=
  if [[ $PREFIX != *=* ]]; then
    compadd -S '' -- @flags
    return
  fi
  compset -P 1 '*='
  case $flag in
@cases
  esac
  [[ -z $several ]] || compset -P '*,'
  [[ -z $choices ]] || compadd -S '' -- ${=choices}
  case $paths in
    file) _files ;;
    directory) _files -/ ;;
  esac
}
(( $+functions[compdef] )) || { autoload -U compinit && compinit }
compdef _diffusion_jax diffusion-jax
""")

# fish completes what follows "=" by itself, but for what follows a comma.
_FISH = r"""# Completes diffusion-jax; written by python -m diffusion_jax.main --completion=fish.
function __diffusion_jax_value # Prints what stands after "=": up to the last comma, and from there.
  set -l value (commandline -ct | string replace -r '^[^=]*=' '')
  string replace -r '[^,]*$' '' -- "$value"
  string replace -r '^.*,' '' -- "$value"
end
function __diffusion_jax_several # Prints words, each after those that are there.
  set -l value (__diffusion_jax_value)
  printf '%s\n' "$value[1]"$argv
end
function __diffusion_jax_paths # The same of the paths that begin as the last one does.
  set -l value (__diffusion_jax_value)
  for path in "$value[2]"*
    test -d $path; and echo "$value[1]$path/"; or test $argv[1] = directory; or echo "$value[1]$path"
  end
end
complete -c diffusion-jax -f
"""


def _filled(template: _Template) -> Callable[[list[str], dict[str, Values]], str]:
    """Returns what writes a script with one case for each flag that has something to propose."""

    def written(flags: list[str], given: dict[str, Values]) -> str:
        cases = []
        for flag, values in given.items():
            parts = [f"choices={shlex.quote(' '.join(values.words))}"] if values.words else []
            parts += [f"paths={values.paths}"] if values.paths else []
            parts += ["several=1"] if values.several else []
            cases += [f"    {flag}) {' '.join(parts)} ;;"] if parts else []
        return template.substitute(flags=" ".join(flags), cases="\n".join(cases))

    return written


def _fish(flags: list[str], given: dict[str, Values]) -> str:
    """Returns a script with one line for each flag."""
    lines = []
    for flag in flags:
        name = flag.removesuffix("=")
        values, words = given.get(name, Values()), ["-l", name.removeprefix("--")]
        said = " ".join(values.words)
        if values.several:
            said = f"(__diffusion_jax_several {said})" if said else ""
            said += f" (__diffusion_jax_paths {values.paths})" if values.paths else ""
        elif values.paths == FOLDER:
            said += "(__diffusion_jax_paths directory)"
        words += ["-a", shlex.quote(said.strip())] if said else []
        words += (
            ["-r -F"] if values.paths == FILE and not values.several else ["-x"] * (flag != name)
        )
        lines.append(" ".join(["complete -c diffusion-jax", *words]))
    return _FISH + "\n".join(lines) + "\n"


# Shell -> (flags, what may follow each) -> script.
SHELLS: dict[str, Callable[[list[str], dict[str, Values]], str]] = {
    "bash": _filled(_BASH),
    "zsh": _filled(_ZSH),
    "fish": _fish,
}
