"""Counts the modules that take or read a config: those that a training reaches, and those of all modes.

A module is reached if the mode's own module imports it, itself or by others, also inside a function; a name that a
package's stub offers leads to the module that it comes from. It takes or reads a config if it names `ConfigDict`, has
an argument `config`, or reads an attribute of `config` or the attribute `config` of an object. The package config/,
which makes and checks configs, does not count, nor do `--config` among the parser's flags and `config` of a module.

  python benchmarks/config_reach.py
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.commands.modes import MODES

ROOT = Path(__file__).parents[1]
PACKAGE = "diffusion_jax"


def mode_module(mode: str) -> str:
    """Returns the name of a mode's own module."""
    return f"{PACKAGE}.commands.{MODES[mode].module or mode}"


def reading(start: set[str]) -> list[str]:
    """Returns the names of the modules, reached from these, that take or read a config."""
    own = f"{PACKAGE}.config"
    outside = (name for name in reached(start) if name != own and not name.startswith(f"{own}."))
    return sorted(name for name in outside if reads_config(ast.parse(_file(name).read_text())))


def reached(start: set[str]) -> set[str]:
    """Returns the names of all modules of the package that these import, and these."""
    found, waiting = set[str](), set(start)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(_imported(name)) - found
    return found


def reads_config(tree: ast.Module) -> bool:
    """Whether a module takes or reads a config."""
    modules = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    flags = {"flags"}  # Of the parser, whose `config` is the path of a file.

    def reads(node: ast.AST) -> bool:
        if isinstance(node, ast.arg):
            return node.arg == "config"
        if isinstance(node, ast.Name):
            return node.id == "ConfigDict"
        if not isinstance(node, ast.Attribute):
            return False
        owner = node.value.id if isinstance(node.value, ast.Name) else None
        return owner == "config" or (node.attr == "config" and owner not in modules | flags)

    return any(map(reads, ast.walk(tree)))


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _exists(module: str) -> bool:
    return _file(module).is_file()


def _imported(module: str) -> Iterator[str]:
    """Yields the modules of the package that a module imports, and the packages that they lie in."""
    for node in ast.walk(ast.parse(_file(module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _exists(alias.name))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            origin = str(node.module)
            for depth in range(origin.count(".") + 1):
                yield origin.rsplit(".", depth)[0]
            if module != PACKAGE:  # It imports a name's module when the name is used.
                for alias in node.names:
                    yield from _modules_of(origin, alias.name)


def _modules_of(package: str, name: str) -> Iterator[str]:
    """Yields the module that a name of a package is, or that its stub has the name from."""
    if _exists(f"{package}.{name}"):
        yield f"{package}.{name}"
        return
    stub = _file(package).with_suffix(".pyi")
    for node in ast.parse(stub.read_text()).body if stub.is_file() else ():
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            yield f"{package}.{node.module}"


def main() -> None:
    """Prints the modules and their number."""
    every = {f"{PACKAGE}.main", *map(mode_module, MODES)}
    for what, start in (("train", {mode_module("train")}), ("all modes and main", every)):
        names = reading(start)
        print(f"{what}: {len(names)} of {len(reached(start))} modules take or read a config")
        print("\n".join(f"  {name.removeprefix(PACKAGE + '.')}" for name in names))


if __name__ == "__main__":
    main()
