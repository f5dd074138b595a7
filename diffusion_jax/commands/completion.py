"""Completion of the command in bash and zsh, by a script that knows all names, so that no TAB starts Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from diffusion_jax import recipes
from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import FIELDS, GROUPS
from diffusion_jax.errors import InputError
from diffusion_jax.options.kinds import Bool, Choice, Either, Kind, Tuple

SHELLS = ("bash", "zsh")
# zsh runs bash's completions once it is told to.
_BEFORE = {"bash": "", "zsh": "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"}
# bash takes "--flag=value" for three words: so the word is read from the line, and only the value is answered.
_SCRIPT = """\
# Completes diffusion-jax; written by python -m diffusion_jax.main --completion=%(shell)s.
%(before)s_diffusion_jax() {
  local word="${COMP_LINE:0:$COMP_POINT}" flag value words="" given="" before=""
  word="${word##* }"
  COMPREPLY=()
  if [[ "$word" != *=* ]]; then
    COMPREPLY=($(compgen -W %(flags)s -- "$word"))
    return
  fi
  flag="${word%%%%=*}" value="${word#*=}"
  [[ "${COMP_WORDBREAKS:-}" == *=* ]] || before="$flag="
  case "$flag" in
%(cases)s
    --workdir) COMPREPLY=($(compgen -P "$before" -d -- "$value")); return ;;
  esac
  if [[ "$value" == *,* ]]; then
    given="${value%%,*},"
  fi
  COMPREPLY=($(compgen -P "$before$given" -W "$words" -- "${value##*,}"))
  if [[ "$flag" == --config ]]; then
    COMPREPLY+=($(compgen -P "$before" -f -- "$value"))
  fi
}
complete -o nospace -F _diffusion_jax diffusion-jax
"""


def script(shell: str, flags: Iterable[str]) -> str:
    """Returns the script for a shell.

    Args:
      shell: One of SHELLS.
      flags: The command's flags, such as "--mode".

    Raises:
      InputError: It is not.
    """
    if shell not in SHELLS:
        raise InputError(f"--completion is {shell!r}; it must be one of {', '.join(SHELLS)}")
    fields = [f"--config.{name}" for name in FIELDS]
    values = {
        "--mode": list(MODES),
        "--config": recipes.names(),
        "--help": ["FIELDS", "FLAGS", *filter(None, GROUPS), *FIELDS],
        "--completion": list(SHELLS),
        **{f"--config.{name}": values_of(field.kind) for name, field in FIELDS.items()},
    }
    cases = [
        f"    {flag}) words={shlex.quote(' '.join(words))} ;;"
        for flag, words in values.items()
        if words
    ]
    return _SCRIPT % {
        "shell": shell,
        "before": _BEFORE[shell],
        "flags": shlex.quote(" ".join([*flags, *(f"{field}=" for field in fields)])),
        "cases": "\n".join(cases),
    }


def values_of(kind: Kind) -> list[str]:
    """Returns the values of a kind that have names."""
    if isinstance(kind, Either):
        return values_of(kind.first) + values_of(kind.second)
    if isinstance(kind, Tuple):
        return values_of(kind.item)
    if isinstance(kind, Bool):
        return ["true", "false"]
    if isinstance(kind, Choice):
        return [*kind.names, *(f"{prefix}:" for prefix in kind.prefixes)]
    return []
