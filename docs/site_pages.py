"""Pages of the site that are made from docstrings, notebooks, the changelog and the benchmarks."""

import functools
import importlib
import inspect
import json
import os
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/diffusion-jax/diffusion_jax"
# Namespaces with public names, in the order in which an image takes its way.
NAMESPACES = (
    *("diffusion_jax", "data", "processes", "models", "losses", "training", "checkpoints"),
    *(
        "runs",
        "samplers",
        "likelihood",
        "metrics",
        "features",
        "reporting",
        "options",
        "config",
        "errors",
    ),
)
# Pages made from files elsewhere.
COPIES = {"CHANGELOG.md": "changelog.md", "benchmarks/README.md": "benchmarks.md"}
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def write_pages(folder: Path) -> None:
    """Writes all generated pages; Sphinx reads only changed ones again."""
    for namespace in NAMESPACES:
        _write(folder / "api" / f"{namespace}.md", namespace_page(namespace))
    for source, page in COPIES.items():
        text = (ROOT / source).read_text()
        _write(folder / page, rewrite_links(text, (ROOT / source).parent, folder))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        contents = json.loads(notebook.read_text())
        contents["metadata"]["kernelspec"] = _KERNEL  # A pair with a script names none.
        _write(folder / "notebooks" / notebook.name, json.dumps(contents))


def public_names(namespace: str) -> list[str]:
    """Returns the public names of a namespace that are not modules, sorted as people look for them."""
    module = importlib.import_module(module_name(namespace))
    names = getattr(module, "__all__", None)
    if names is None:
        members = inspect.getmembers(module)
        names = [
            name
            for name, value in members
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
    named = [name for name in names if not isinstance(getattr(module, name), types.ModuleType)]
    return sorted(named, key=str.lower)


def module_name(namespace: str) -> str:
    """Returns the full name of a namespace's module."""
    return namespace if namespace == "diffusion_jax" else f"diffusion_jax.{namespace}"


def namespace_page(namespace: str) -> str:
    """Returns the Markdown page of a namespace: a table of its names, each of which has a page of its own.

    A name that another namespace has too, such as those at the top, has one page for both.
    """
    name = module_name(namespace)
    module = importlib.import_module(name)
    homes = {public: home_of(public, namespace) for public in public_names(namespace)}
    own = "\n".join(f"   {public}" for public, home in homes.items() if home == namespace)
    rows = [
        f"| [`{public}`]({home}/{module_name(home)}.{public}.rst) | {_summary(getattr(module, public))} |"
        for public, home in homes.items()
        if home != namespace
    ]
    table = "\n".join(["| name | |", "|---|---|", *rows, ""]) if rows else ""
    summary = f".. autosummary::\n   :toctree: {namespace}\n\n{own}\n" if own else ""
    return (
        f"# {name}\n\n{inspect.getdoc(module)}\n\n{table}\n"
        f"```{{eval-rst}}\n.. currentmodule:: {name}\n\n{summary}```\n"
    )


def home_of(name: str, namespace: str) -> str:
    """Returns the first namespace, those in packages before the top, that has the object of this name."""
    value = getattr(importlib.import_module(module_name(namespace)), name)
    for other in NAMESPACES[1:]:
        if getattr(importlib.import_module(module_name(other)), name, None) is value:
            if name in public_names(other):
                return other
    return namespace


def _summary(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0].replace("|", "\\|")


def describe(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Turns a docstring, which is plain text, into reStructuredText: formulas are blocks, and symbols stay symbols.

    A constant, such as a registry, is described by what it holds.
    """
    if what in ("data", "attribute") and isinstance(value, Mapping):
        lines[:] = [line for key in value for line in _entry(key, value.get(key))]
        return
    if what in ("data", "attribute") and inspect.getdoc(value) == inspect.getdoc(type(value)):
        lines[:] = [f"``{repr(value)[:200]}``"]
        return
    # An example is the last section, and a program: nothing in it is escaped.
    end = lines.index("Example:") if "Example:" in lines else len(lines)
    described, section, block = [], False, False
    for line in lines[:end]:
        section = section or bool(re.match(r"(Args|Returns|Raises|Attributes|Yields):$", line))
        if not section and line.startswith("  ") and not block and described and not described[-1]:
            described += ["::", ""]
            block = True
        block = block and (line.startswith(" ") or not line)
        described.append(line if block else _escaped(line))
    lines[:end] = described


def _entry(name: str, component: Any) -> list[str]:
    said = (
        component
        if isinstance(component, str)
        else getattr(component, "help", None) or _summary(component)
    )
    return [f"- ``{name or 'none'}``: {_escaped(str(said))}"]


def _escaped(text: str) -> str:
    """Returns text in which `*`, `|` and a final `_` outside of code mean themselves."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(
        _code(part) if i % 2 else re.sub(r"(?<!\\)([*|]|(?<=\w)_(?!\w))", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def _code(text: str) -> str:
    """Returns code in which a public name is a link."""
    name = text.strip("`")
    return (
        f"`{name}`"
        if re.fullmatch(r"[\w.]+", name) and name.rpartition(".")[2] in _links()
        else f"``{name}``"
    )


def rewrite_links(text: str, base: Path, page_folder: Path) -> str:
    """Returns Markdown whose relative links work on the site.

    Args:
      text: Markdown with links relative to `base`.
      base: Folder of the source.
      page_folder: Folder of the page.
    """

    def rewritten(match: re.Match[str]) -> str:
        opening, target, fragment, closing = match.groups()
        if re.match(r"[a-z]+:", target):
            return match.group()
        path = (base / target).resolve()
        if not path.exists():
            return match.group()  # Sphinx warns of it.
        source = path.relative_to(ROOT).as_posix()
        if source in COPIES:
            path = DOCS / "generated" / COPIES[source]
        elif path.suffix == ".ipynb":
            path = DOCS / "generated" / "notebooks" / path.name
        elif not path.is_relative_to(DOCS) or path.is_dir():
            kind = "tree" if path.is_dir() else "blob"
            return f"{opening}{REPOSITORY}/{kind}/main/{source}{fragment or ''}{closing}"
        return f"{opening}{os.path.relpath(path, page_folder)}{fragment or ''}{closing}"

    parts = re.split(r"(^```.*?^```$|`[^`\n]*`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else _LINK.sub(rewritten, part) for i, part in enumerate(parts))


def rewrite_source(app: Any, docname: str, source: list[str]) -> None:
    """Rewrites the links of a page of this folder, before Sphinx parses it."""
    if not docname.startswith("generated/") and (DOCS / f"{docname}.md").exists():
        folder = (DOCS / docname).parent
        source[0] = rewrite_links(source[0], folder, folder)


def links_of(text: str) -> Iterator[str]:
    """Yields the relative links of Markdown, without those in code."""
    for i, part in enumerate(
        re.split(r"(^```.*?^```$|`[^`\n]*`)", text, flags=re.DOTALL | re.MULTILINE)
    ):
        if i % 2 == 0:
            yield from (
                m[2] + (m[3] or "") for m in _LINK.finditer(part) if not re.match(r"[a-z]+:", m[2])
            )


class _Written:
    """An annotation as it is written in the source."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def write_signature(
    app: Any,
    what: str,
    name: str,
    value: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Returns a signature with annotations as they are written, public names being links, without the options."""
    if signature is None or what in ("data", "attribute"):
        return signature, returned
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return signature, returned
    shown = [
        parameter.replace(annotation=_written(parameter.annotation))
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    result = (
        None if found.return_annotation is found.empty else repr(_written(found.return_annotation))
    )
    return str(inspect.Signature(shown)), None if what == "class" else result


def _written(annotation: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    text = re.sub(r"^Annotated\[(.*), .*\]$", r"\1", annotation, flags=re.DOTALL)
    text = re.sub(r"(['\"])(?: |(?=\w))", r"\1", text)  # Float[Array, " b"]: the space is ruff's.
    return _Written(re.sub(r"(?<![\w.'\"])[A-Z]\w+", lambda m: _links().get(m[0], m[0]), text))


@functools.cache
def _links() -> dict[str, str]:
    """Returns the link to each public class, by name."""
    return {
        name: f"~{module_name(namespace)}.{name}"
        for namespace in NAMESPACES[1:]
        for name in public_names(namespace)
        if home_of(name, namespace) == namespace
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
