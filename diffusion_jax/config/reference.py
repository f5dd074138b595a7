"""Text of the field reference: `--help=FIELDS` and docs/config.md.

`python -m diffusion_jax.config.reference > docs/config.md` writes the page.
"""

from __future__ import annotations

import textwrap
from typing import Any

from diffusion_jax.config.table import FIELDS, GROUPS, group_of
from diffusion_jax.errors import InputError, nearest

WIDTH = 100  # Columns of the help text.
_COLUMN = 36  # Column of the meanings, after names and defaults.
_CHANGES = {"no": "no", "on_resume": "at a resume", "yes": "at any time"}
_PAGE = """# Config fields

Written by `python -m diffusion_jax.config.reference > docs/config.md` from the table in
[`config/table.py`](../diffusion_jax/config/table.py); `--help=FIELDS`, `--help=GROUP` and `--help=GROUP.FIELD` print
the same.

A config file starts from `default_config()` and sets fields (`config.train.num_steps = 200`); the command line
overrides them (`--config.train.num_steps=200`). Several values are written `1,2,2` or `(1, 2, 2)`, and `none` unsets a
field that may be unset.

The last column says whether a field may differ from its value when the run was started. No: it decides the trained
parameters, and a change needs `--allow_config_change`. At a resume: training may continue with another value, and
other modes use the run's. At any time: every mode may set it.
"""


def show(value: Any) -> str:
    """Formats a value as on the command line: none, true, or 1,2,2."""
    if isinstance(value, tuple):
        return ",".join(map(show, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def help_text(name: str) -> str:
    """Returns the help, in lines of at most WIDTH columns, for all fields, one group or one field.

    Args:
      name: "FIELDS", a group such as "train", or a field such as "train.num_steps".

    Raises:
      InputError: There is no such group or field.
    """
    everything = name.upper() == "FIELDS"
    chosen = [field for field in FIELDS if everything or name and name in (field, group_of(field))]
    if not chosen:
        groups = ", ".join(filter(None, GROUPS))
        hint = nearest(name, [*filter(None, GROUPS), *FIELDS])
        raise InputError(
            f"--help: unknown {name!r}; choose FIELDS, FLAGS, a field or a group: {groups}.{hint}"
        )
    lines = [
        "--config.FIELD=VALUE sets a field; none unsets it. Below: FIELD = DEFAULT, meaning (values)."
    ]
    for group in dict.fromkeys(map(group_of, chosen)):
        lines += ["", f"{group}: {GROUPS[group]}" if group else GROUPS[group]]
        for field in chosen:
            if group_of(field) == group:
                lines += _paragraph(field)
    return "\n".join(lines)


def _paragraph(name: str) -> list[str]:
    field = FIELDS[name]
    return textwrap.wrap(
        f"{field.meaning} ({field.allowed})",
        WIDTH,
        initial_indent=f"  {name} = {show(field.default)}".ljust(_COLUMN - 1) + " ",
        subsequent_indent=" " * _COLUMN,
        break_on_hyphens=False,
    )


def markdown() -> str:
    """Returns the page docs/config.md."""
    parts = [_PAGE]
    for group, meaning in GROUPS.items():
        parts += [
            f"\n## {f'`{group}`: {meaning}' if group else meaning.capitalize()}\n",
            "\n| field | default | meaning | allowed | may change |\n|---|---|---|---|---|\n",
        ]
        for name, field in FIELDS.items():
            if group_of(name) == group:
                cells = (field.meaning, field.allowed, _CHANGES[field.changeable])
                parts.append(f"| `{name}` | `{show(field.default)}` | {' | '.join(cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")
