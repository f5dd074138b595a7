"""The project's promises about itself: README commands, dependencies, imports, recipe cards."""

import ast
import configparser
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_jax
from diffusion_jax import config as config_lib, console
from diffusion_jax.commands import huge_pages
from diffusion_jax.commands.modes import MODES
from diffusion_jax.experiment import build

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import config_reach

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name for module in pkgutil.walk_packages(diffusion_jax.__path__, "diffusion_jax.")
]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# Declared because tensorflow-datasets needs them, although our modules do not import them.
INDIRECT = {"array-record", "flatbuffers", "importlib-resources"}


def normalize(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def imported_packages(path: Path) -> set[str]:
    """Top-level names of all absolute imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "command",
    [
        "pip install -e . && python -m diffusion_jax.main --config=configs/digits.py",
        "pip install -e '.[test]' && pytest",
    ],
)
def test_readme_has_the_command_once_as_a_line_to_copy(command: str):
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert lines.count(command) == 1


def test_the_extras_that_the_documents_name_exist_in_the_package_and_in_jax():
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    named = set(re.findall(r"\.\[(\w+)\]'", "".join(texts)))
    extras = setup_cfg()["options.extras_require"]
    assert named == set(extras), "each extra is named, and each named one is there"
    of_jax = set(re.findall(r"^jax\[(\w+)\]$", "\n".join(extras.values()), re.MULTILINE))
    offered = importlib.metadata.metadata("jax").get_all("Provides-Extra") or []
    assert {"cuda12", "cuda13", "tpu"} == of_jax <= set(offered)


def test_the_installed_version_is_the_packages_and_in_the_changelogs_form():
    assert importlib.metadata.version("diffusion_jax") == diffusion_jax.__version__
    assert setup_cfg()["metadata"]["version"] == "attr: diffusion_jax.__version__"
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_installed_command_is_the_one_that_starts_again_with_huge_pages():
    scripts = setup_cfg()["options.entry_points"]["console_scripts"].split(" = ")
    assert [part.strip() for part in scripts] == [
        huge_pages.INSTALLED,
        "diffusion_jax.console:main",
    ]
    assert callable(console.main)


def test_the_page_of_the_command_line_names_its_modes_flags_statuses_and_variables():
    page = (ROOT / "docs" / "command_line.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "diffusion_jax").rglob("*.py"))
    variables = set(re.findall(r"\bDIFFUSION_JAX_[A-Z_]+", sources))
    flags = set(re.findall(r"""add_argument\(\s*"(--[a-z_]+)""", sources))
    assert len(variables) >= 3 and {"--config", "--workdir", "--process_id"} <= flags
    assert {f"`{name}`" for name in variables} <= set(re.findall("`[A-Z_]+`", page))
    assert flags - {name for name in flags if f"`{name}" in page} == set()
    rows = set(re.findall(r"^\| `?(\w+)", page, re.MULTILINE))
    assert {*MODES, "0", "1", "2", "75", "128"} <= rows


def test_every_imported_package_is_declared_and_every_declared_one_is_used():
    sources = list((ROOT / "diffusion_jax").rglob("*.py"))
    imported = set().union(*(imported_packages(path) for path in sources))
    providers = importlib.metadata.packages_distributions()
    external = imported - set(sys.stdlib_module_names) - {"diffusion_jax"}
    used = {normalize(providers[name][0]) for name in external}
    declared = re.findall(r"^[\w.-]+", setup_cfg()["options"]["install_requires"], re.MULTILINE)
    assert used | INDIRECT == {normalize(name) for name in declared}


def test_a_module_of_the_package_needs_no_import_of_its_own():
    program = (
        "import diffusion_jax; print(diffusion_jax.data.load, diffusion_jax.errors.InputError)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        diffusion_jax.no_such_name()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_library_function_imports_only_what_it_needs():
    """Importing the package loads nothing, and q_sample neither data, models nor checkpoints."""
    program = """
import sys
import numpy as np
before = set(sys.modules)
import diffusion_jax
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not loaded - {"diffusion_jax", "lazy_loader"} - set(sys.stdlib_module_names), loaded
process = diffusion_jax.DDPM(diffusion_jax.make_schedule("cosine", 10))
diffusion_jax.processes.q_sample(process.at(np.array([9])), np.ones((1, 2)), np.zeros((1, 2)))
assert "jax" in sys.modules
heavy = "tensorflow_datasets sklearn matplotlib tensorboardX grain orbax flax optax PIL".split()
assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    assert result.returncode == 0, result.stderr.decode()


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_and_its_docstring_says_what_it_holds(name: str):
    assert importlib.import_module(name).__doc__


def test_importing_everything_loads_no_tensorflow_and_starts_no_device(tmp_path: Path):
    """A present TensorFlow stays unloaded, and jax.distributed can still be initialized."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow loaded')")
    program = f"""
import importlib, sys
sys.path.insert(0, {str(tmp_path)!r})
for name in {MODULES}:
    importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a device was started"
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    assert result.returncode == 0, result.stderr.decode()


def test_modules_are_short_and_the_top_level_is_a_glance():
    package = ROOT / "diffusion_jax"
    lines = {path: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert max(lines.values()) <= 350, max(lines, key=lambda path: lines[path])
    assert len(list(package.glob("*.py"))) <= 8


def test_functions_are_short():
    """No function of the package, with what is defined in it, has more than 40 lines without its docstring."""
    for path in (ROOT / "diffusion_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                documented = node.body[:1] if ast.get_docstring(node) is not None else []
                spans = [(part.end_lineno or 0) - part.lineno + 1 for part in (node, *documented)]
                assert spans[0] - sum(spans[1:]) <= 40, f"{path}: {node.name}"


def test_imports_go_one_way():
    """No module imports one that stands lower in the table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| package or module | contents |") : text.index("## Core types")]
    order: dict[str, int] = {}
    for row, line in enumerate(table.splitlines()[2:]):
        for name in re.findall(r"`([\w/]+?)(?:\.py|/)`", line.split("|")[1] if "|" in line else ""):
            order[name] = row
    package = ROOT / "diffusion_jax"
    assert {path.stem for path in package.glob("[!_]*.py")} <= order.keys()
    for path in package.rglob("*.py"):
        place = path.relative_to(package).parts[0].removesuffix(".py")
        if place == "__init__":
            continue  # It imports a public name's module when the name is used.
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "diffusion_jax"
            ):
                continue
            parts = (node.module or "").split(".")
            for name in [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]:
                if name in order and name != place:
                    assert order[name] <= order[place], f"{path} imports {name}"


def test_a_config_stops_at_few_modules():
    """Those that take or read one are counted as `benchmarks/config_reach.py` says."""
    every = {"diffusion_jax.main", *map(config_reach.mode_module, MODES)}
    assert len(config_reach.reading({config_reach.mode_module("train")})) <= 8
    assert len(config_reach.reading(every)) <= 27


@pytest.mark.parametrize(
    "source, reads",
    [
        ("def f(config): pass", True),
        ("def f(fields: ConfigDict): pass", True),
        ("def f(run): return run.config.seed", True),
        ("import jax\njax.config.update('jax_platforms', 'cpu')", False),
        ("def f(flags): return flags.config", False),
        ("def f(config_hash, seed): return seed", False),
    ],
)
def test_reading_a_config_is_seen(source: str, reads: bool):
    assert config_reach.reads_config(ast.parse(source)) == reads


def test_only_networks_import_flax():
    for path in (ROOT / "diffusion_jax").rglob("*.py"):
        if path.parent.name != "networks":
            assert "flax" not in imported_packages(path), path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_opens_with_its_recipe_card(path: Path):
    card = ast.get_docstring(ast.parse(path.read_text())) or ""
    for line in ("Data:", "Parameters:", "Steps:", "Expected:", "Source:", "Device-hours:"):
        assert re.search(rf"^\s*{line} +\S", card, re.MULTILINE), f"the card has no line {line}"


def test_every_promised_config_is_there():
    promised = {"digits", "fashion_mnist", "cifar10", "celebahq256", "lsun256", "image_folder"}
    promised |= {"cifar10_hybrid", "cifar10_vlb"}
    assert promised <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("page", ["README.md", "docs/your_own_images.md", "docs/score_models.md"])
def test_the_commands_for_images_of_ones_own_set_fields_that_fit(page: str):
    text = (ROOT / page).read_text().replace("\\\n", " ")
    command = r"^    (?:python -m diffusion_jax.main|diffusion-jax) (.*image_folder.*)$"
    commands = re.findall(command, text, re.MULTILINE)
    assert commands
    for command in commands:
        (name,) = re.findall(r"--config=(?:configs/)?(\w+)", command)
        config = config_lib.load_file(str(ROOT / "configs" / f"{name}.py"))
        config_lib.override(config, re.findall(r"--config\.(\S+?)=(\S+)", command))
        build.validate(config)


def test_the_readme_is_one_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


@pytest.mark.parametrize("stub", sorted((ROOT / "diffusion_jax").rglob("*.pyi")), ids=str)
def test_every_name_of_a_stub_exists_and_has_a_docstring(stub: Path):
    """A stub is the one table of a package's public names."""
    package = ".".join(stub.relative_to(ROOT).parent.parts)
    module = importlib.import_module(package)
    nodes = [n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ImportFrom)]
    for node in nodes:
        assert node.level == 1
        for alias in node.names:
            value = getattr(module, alias.name)
            assert alias.asname in (alias.name, None)
            assert not callable(value) or value.__doc__, f"{package}.{alias.name} has no docstring"


def test_the_top_level_has_the_names_of_the_readme_and_few_others():
    """All other names stand in namespaces: a reader finds a sampler among the samplers."""
    names = [
        name
        for name in diffusion_jax.__all__
        if not hasattr(getattr(diffusion_jax, name), "__path__")
    ]
    used = set(re.findall(r"\bdj\.(\w+)", (ROOT / "README.md").read_text()))
    assert used <= set(diffusion_jax.__all__) and len(names) <= 24
