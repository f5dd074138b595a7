"""The documentation: its links lead somewhere, its site is built without a warning, and every public name is in it."""

import inspect
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))
import site_pages  # noqa: E402

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "notebooks/*.ipynb")
    for path in ROOT.glob(pattern)
)
OWN = f"{site_pages.REPOSITORY}/blob/main/"  # Links to a file at the repository's own host.
NAMES = [
    (namespace, name)
    for namespace in site_pages.NAMESPACES[1:]
    for name in site_pages.public_names(namespace)
    if site_pages.home_of(name, namespace) == namespace
]


def markdown(page: Path) -> str:
    """The text of a page; of a notebook, without its code."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path):
    text = markdown(page)
    for link in [*site_pages.links_of(text), *re.findall(rf"\]\(({OWN}[^)\s]*)\)", text)]:
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if target.startswith(OWN):
            path = ROOT / target.removeprefix(OWN)
        assert path.exists(), f"{page.name}: {link}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name}: {link}"


def test_links_of_a_page_are_rewritten_for_the_site():
    text = (
        "[a](../README.md#start) [b](data.md) `[c](d.md)` [e](https://x.org) [f](../CHANGELOG.md)"
    )
    assert site_pages.rewrite_links(text, site_pages.DOCS, site_pages.DOCS) == (
        f"[a]({site_pages.REPOSITORY}/blob/main/README.md#start) [b](data.md) `[c](d.md)` "
        "[e](https://x.org) [f](generated/changelog.md)"
    )


def test_every_public_name_says_what_it_is_and_what_it_takes():
    """Constants aside, which the site describes by what they hold."""
    for namespace, name in NAMES:
        value: Any = getattr(import_module(site_pages.module_name(namespace)), name)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert inspect.getdoc(value) not in (None, inspect.getdoc(dict)), name
        if inspect.isfunction(value) and len(taken := inspect.signature(value).parameters) > 1:
            missing = [p for p in taken if not re.search(rf"\b{p}\b", inspect.getdoc(value) or "")]
            assert not missing, f"{namespace}.{name} does not describe {missing}"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_every_public_name_has_a_page(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)]
    environment = {name: v for name, v in os.environ.items() if name != "DOCS_EXECUTE"}
    built = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert built.returncode == 0, built.stderr
    pages = tmp_path / "generated" / "api"
    for namespace, name in NAMES:
        page = pages / namespace / f"diffusion_jax.{namespace}.{name}.html"
        assert page.exists() and name in page.read_text(), page.name
